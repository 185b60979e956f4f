local paused = obj.spec.paused == true
local held = obj.spec.replicas ~= nil
return {
  ["pause"] = {["disabled"] = paused},
  ["resume"] = {["disabled"] = not paused},
  ["hold"] = {["disabled"] = paused or held},
  ["release"] = {["disabled"] = not held},
}
