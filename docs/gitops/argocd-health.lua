-- Health of an ITrainRun for Argo CD. Only the base library is needed: Argo CD opens no other by default.
--   Healthy      succeeded
--   Degraded     failed, or a person must act (Stalled)
--   Suspended    by spec.suspend
--   Progressing  everything else: not seen by the operator yet, running, waiting for quota or nodes
local status = obj.status
if status == nil or status.phase == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "not seen by the operator yet" }
end

local words = status.reason or status.phase
if status.message ~= nil and status.message ~= "" then
  words = words .. ": " .. status.message
end

if status.phase == "Succeeded" then
  return { status = "Healthy", message = words }
end
if status.phase == "Failed" then
  return { status = "Degraded", message = words }
end
if status.phase == "Suspended" then
  return { status = "Suspended", message = words }
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Stalled" and condition.status == "True" then
    return { status = "Degraded", message = words }
  end
end

if status.stage ~= nil then
  words = "iteration " .. (status.iterationText or "") .. ", " .. status.stage .. ": " .. words
end
return { status = "Progressing", message = words }
