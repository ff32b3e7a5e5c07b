-- What the pages of the book need and neither nbdev nor Quarto does:
-- 1. A chapter has its title in its front matter and as its first heading (the module's docstring): show it once,
-- 2. and give its anchor back to the exported name that reads the same: attention.html#attention is the class.
-- 3. Under its first sentence a chapter shows its card: time to read and to run (site/cards.json).
-- 4. Links to the source, Colab and JupyterLab need the project's public address: `git_url` in settings.ini. While it is
--    empty they are left out, nbdev's own among them (it links each function to /blob/...).
-- 5. Wide tables get a box that scrolls, so that the page need not.
-- 6. A solution is closed with all that it prints: Quarto would fold the code alone, and show what comes out.

local function read(name)
  -- A file of the repository, looked for upwards from the page, and from this script.
  local starts = {}
  if quarto and quarto.doc and quarto.doc.input_file then
    table.insert(starts, pandoc.path.directory(quarto.doc.input_file))
  end
  if PANDOC_SCRIPT_FILE then table.insert(starts, pandoc.path.directory(PANDOC_SCRIPT_FILE)) end
  table.insert(starts, ".")
  for _, folder in ipairs(starts) do
    for _ = 1, 3 do
      local file = io.open(pandoc.path.join({ folder, name }), "r")
      if file then
        local text = file:read("a")
        file:close()
        return text
      end
      folder = pandoc.path.join({ folder, ".." })
    end
  end
  return ""
end

local settings = read("settings.ini")

local function setting(name)
  local value = settings:match("\n" .. name .. " *= *([^\n]*)") or ""
  return value:match("^(.-)%s*$")
end

local address, branch = setting("git_url"):match("^(.-)/*$"), setting("branch")

local function decoded(text)
  if text == "" then return {} end
  if quarto and quarto.json then return quarto.json.decode(text) end
  return pandoc.json.decode(text, false)
end

local cards = {}
for _, card in ipairs(decoded(read("site/cards.json"))) do cards[card.title] = card end

local function link(text, target)
  return pandoc.Link(text, target, "", pandoc.Attr("", { "external" }))
end

local function card_of(title)
  local card = cards[title]
  if not card then return nil end
  local facts = { pandoc.Str("About " .. math.tointeger(card.read_minutes) .. " minutes to read") }
  local function add(inline)
    table.insert(facts, pandoc.Str(" · "))
    table.insert(facts, inline)
  end
  if type(card.run_s) == "number" then add(pandoc.Str("runs in " .. math.tointeger(card.run_s) .. " s on one core")) end
  if card.exercises > 0 then add(pandoc.Link("exercises", "#exercises")) end
  if card.module ~= "" then add(pandoc.Code("tinygpt." .. card.module)) end
  if address ~= "" then
    local place = "/blob/" .. branch .. "/" .. card.notebook
    add(link("source", address .. place))
    local hub = address:match("github%.com/(.+)$")
    if hub then
      add(link("open in Colab", "https://colab.research.google.com/github/" .. hub .. place))
      add(link("open in JupyterLab", "https://mybinder.org/v2/gh/" .. hub .. "/" .. branch .. "?urlpath=lab/tree/" .. card.notebook))
    end
  end
  return pandoc.Div({ pandoc.Plain(facts) }, pandoc.Attr("", { "chapter-card" }))
end

function Pandoc(doc)
  if not doc.meta.title then return nil end
  local taken, at = nil, nil
  for i, block in ipairs(doc.blocks) do
    if block.t == "Header" and block.level == 1 then
      taken, at = block.identifier, i
      doc.blocks:remove(i)
      break
    end
  end
  if not at then return nil end
  local card = card_of(pandoc.utils.stringify(doc.meta.title))
  if card then
    if doc.blocks[at] and doc.blocks[at].t == "BlockQuote" then at = at + 1 end
    doc.blocks:insert(at, card)
  end
  if taken == "" then return doc end
  return doc:walk {
    Header = function(header)
      if header.identifier == taken .. "-1" then
        header.identifier = taken
        return header
      end
    end
  }
end

function Link(link)
  if address == "" and link.target:match("^/blob/") then return {} end
end

function Table(block)
  return pandoc.Div({ block }, pandoc.Attr("", { "wide" }))
end

function Div(cell)
  local code = cell.classes:includes("cell") and cell.content[1]
  local summary = code and code.t == "CodeBlock" and code.attributes["code-summary"]
  if not summary or not summary:match("^Solution") then return nil end
  code.attributes["code-fold"], code.attributes["code-summary"] = nil, nil
  local function html(text) return pandoc.RawInline("html", text) end
  local opening = { html("<details class=\"solution\"><summary>"), pandoc.Str(summary), html("</summary>") }
  cell.content[1] = code
  cell.content:insert(1, pandoc.Plain(opening))
  cell.content:insert(pandoc.Plain({ html("</details>") }))
  return cell
end
