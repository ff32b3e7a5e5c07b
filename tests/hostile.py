"""Token texts that try to be something else: markup, scripts, quotes, characters that hide or turn the line around."""

from __future__ import annotations

import random

RAW = r"""
<b> </b> <script>pwned=1</script> </script> <img/src=x/onerror=pwned=1> "><svg/onload=pwned=1> '><i> <!-- --> <![CDATA[ ]]> &lt;b&gt; &amp; &#60;b&#62;
\\u003cb\\u003e ${pwned=1} `${pwned=1}` {{pwned}} " ' ` \\ \\" javascript:pwned=1 " onmouseover="pwned=1 ' onfocus='pwned=1 x=1;y=2 </div></div></style> </textarea>
<a href=javascript:pwned=1>x</a> <iframe srcdoc='<script>parent.pwned=1</script>'> <details open ontoggle=pwned=1> <math><mi//xlink:href="data:x,pwned"> <template> <!DOCTYPE html>
🦊 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 é e\u0301 \u0301 \u20dd שלום مرحبا ‏ 日本語 ﷽ Ω ß İ ı ſ K \u202eabc \u202d \u2066x\u2069 \u200b \u200d \ufeff \u00ad \u2028 \u2029 \u0085 \u00a0 \u3000 \u180e
\u0000 \u0001 \u0007 \u0008 \u001b[31m \u007f \u009f \ud800 \udfff \ue000 \ufffe \U0010ffff \U000e0041 \r \t \n \r\n __proto__ constructor toString hasOwnProperty null NaN
""".split()
SEEDS = [raw.encode("ascii", "backslashreplace").decode("unicode_escape") for raw in RAW]


def hostile_texts(n: int = 500) -> list[str]:
    "As many different ones: the seeds, then mixtures of them; no lone surrogates, which no token can hold."
    draw, texts = random.Random(0), dict.fromkeys(SEEDS)
    while len(texts) < n + 10:
        texts["".join(draw.choice(SEEDS) for _ in range(draw.randint(2, 4)))] = None
    clean = (text.encode("utf-8", "replace").decode() for text in texts)
    return list(dict.fromkeys(text for text in clean if text))[:n]
