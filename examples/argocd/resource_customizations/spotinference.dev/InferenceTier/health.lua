-- A tier that sleeps is healthy: `Ready=True, reason=Asleep`. Only the spec's own generation counts,
-- so that a sync waits for the operator's answer to what was synced.
local health = {status = "Progressing", message = "Waiting for the operator"}

if obj.status == nil or obj.status.conditions == nil then
  return health
end
if obj.status.observedGeneration ~= nil and obj.status.observedGeneration ~= obj.metadata.generation then
  health.message = "Waiting for the operator to see the change"
  return health
end

local found = {}
for _, condition in ipairs(obj.status.conditions) do
  found[condition.type] = condition
end
local ready, degraded = found["Ready"], found["Degraded"]

if ready ~= nil and ready.status == "True" then
  if ready.reason == "Paused" then
    health.status = "Suspended"
  else
    health.status = "Healthy"
  end
  health.message = ready.reason .. ": " .. ready.message
elseif degraded ~= nil and degraded.status == "True" then
  health.status = "Degraded"
  health.message = degraded.reason .. ": " .. degraded.message
elseif found["CapacityAvailable"] ~= nil and found["CapacityAvailable"].status == "False" then
  health.message = found["CapacityAvailable"].reason .. ": " .. found["CapacityAvailable"].message
elseif ready ~= nil then
  health.message = ready.reason .. ": " .. ready.message
end
return health
