-- Health of tiderace.dev/StreamingJob for Argo CD: resource.customizations.health.tiderace.dev_StreamingJob
local health = {status = "Progressing", message = "waiting for the operator"}
if obj.metadata.deletionTimestamp ~= nil then
  health.message = "being deleted"
  return health
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
local function is_true(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end
if is_true("Stalled") then
  health.status = "Degraded"
  health.message = conditions.Stalled.reason .. ": " .. (conditions.Stalled.message or "")
elseif is_true("Reconciling") then
  health.message = conditions.Reconciling.reason .. ": " .. (conditions.Reconciling.message or "")
elseif is_true("Ready") then
  -- running, suspended as asked, or finished
  health.status = "Healthy"
  health.message = conditions.Ready.message
elseif conditions.Ready ~= nil then
  health.message = conditions.Ready.reason .. ": " .. (conditions.Ready.message or "")
end
return health
