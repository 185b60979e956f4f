local cordoned = obj.spec.cordoned == true
return {
  ["cordon"] = {["disabled"] = cordoned},
  ["uncordon"] = {["disabled"] = not cordoned},
}
