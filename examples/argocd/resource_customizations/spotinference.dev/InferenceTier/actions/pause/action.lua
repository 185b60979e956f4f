-- Zero replicas and refused requests until `resume`.
obj.spec.paused = true
return obj
