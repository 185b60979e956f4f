-- No replica is added in this pool until `uncordon`; those that have a node stay until they go.
obj.spec.cordoned = true
return obj
