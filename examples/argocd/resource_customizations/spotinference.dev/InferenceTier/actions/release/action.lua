-- The autoscaler rules again.
obj.spec.replicas = nil
return obj
