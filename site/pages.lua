-- Three things that the pages of the book need and neither nbdev nor Quarto does:
-- 1. A chapter has its title in its front matter and as its first heading (the module's docstring): show it once,
-- 2. and give its anchor back to the exported name that reads the same: attention.html#attention is the class.
-- 3. nbdev links each function to its source in the repository, whose address settings.ini does not know yet.

function Pandoc(doc)
  if not doc.meta.title then return nil end
  local taken = nil
  for i, block in ipairs(doc.blocks) do
    if block.t == "Header" and block.level == 1 then
      taken = block.identifier
      doc.blocks:remove(i)
      break
    end
  end
  if not taken or taken == "" then return doc end
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
  if link.target:match("^/blob/") then return {} end
end
