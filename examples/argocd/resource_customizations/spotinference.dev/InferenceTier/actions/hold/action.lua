-- At least one replica at once, and until `release`: wakes a sleeping tier and keeps it awake.
local replicas = 1
if obj.spec.scaling ~= nil and obj.spec.scaling.minReplicas ~= nil and obj.spec.scaling.minReplicas > 1 then
  replicas = obj.spec.scaling.minReplicas
end
obj.spec.replicas = replicas
return obj
