-- The health of a FineTuneJob for Argo CD: resource.customizations.health.finetune.dev_FineTuneJob in argocd-cm.
local health = {status = "Progressing", message = "the operator has not seen it yet"}
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end
health.message = obj.status.message
for _, condition in ipairs(obj.status.conditions or {}) do
  if condition.type == "Stalled" and condition.status == "True" then
    health.status = "Degraded"
  elseif condition.type == "Reconciling" and condition.status == "False" and health.status ~= "Degraded" then
    health.status = condition.reason == "Suspended" and "Suspended" or "Healthy"
  end
end
return health
