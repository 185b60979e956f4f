-- A pool is an offer: it is healthy as soon as it exists. Whether there is capacity shows on tiers.
local nodes, tiers = 0, 0
if obj.status ~= nil then
  nodes = obj.status.nodes or 0
  tiers = obj.status.tiers or 0
end
local health = {
  status = "Healthy",
  message = nodes .. " nodes now, named by " .. tiers .. " tiers",
}
if obj.spec.cordoned == true then
  health.status = "Suspended"
  health.message = "cordoned: no replica is added; " .. health.message
end
return health
