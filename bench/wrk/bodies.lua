-- Chats whose prompts never repeat: a number that is new in each request begins the text.
-- BODY_KB: size of the prompt. BODY: "plain" (words, nothing to escape) or "code" (lines of source, about one byte in
-- twelve an escape). SEED: what the text and the numbers come from.
local kb = tonumber(os.getenv("BODY_KB") or "1")
local kind = os.getenv("BODY") or "plain"
local seed = tonumber(os.getenv("SEED") or "1")
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local function word(shortest, longest)
  local letters = {}
  for n = 1, math.random(shortest, longest) do letters[n] = string.char(96 + math.random(26)) end
  return table.concat(letters)
end

local function line()
  if kind == "plain" then return word(2, 9) .. " " end
  local indent = string.rep("\\t", math.random(0, 3))
  return indent .. word(2, 6) .. '(\\"' .. word(3, 9) .. '\\", ' .. word(1, 5) .. ");\\n"
end

local function text(bytes)
  local parts, length = {}, 0
  while length < bytes do
    local part = line()
    parts[#parts + 1] = part
    length = length + #part
  end
  return table.concat(parts)
end

function init()
  math.randomseed(seed)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer a-key-of-some-length-as-clients-send"
  local before = '{"model":"mock","stream":false,"max_tokens":16,"messages":[{"role":"user","content":"'
  local after = text(kb * 1024) .. '"}]}'
  local sent = 0
  request = function()
    sent = sent + 1
    local new = string.format("%d-%08x-%d ", number, (sent * 2654435761) % 4294967296, seed)
    return wrk.format("POST", "/v1/chat/completions", nil, before .. new .. after)
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
