{{/* Names, labels and what several templates ask of the settings. */}}

{{- define "itrain.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "itrain.fullname" -}}
{{- $name := include "itrain.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "itrain.selectorLabels" -}}
app.kubernetes.io/name: {{ include "itrain.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "itrain.labels" -}}
{{ include "itrain.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "itrain.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "itrain.fullname" .) }}
{{- end }}

{{- define "itrain.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* The settings file. The Lease bears the release's name unless the settings name it: two releases must not share one. */}}
{{- define "itrain.settings" -}}
{{- $named := dict "lease" (dict "name" (include "itrain.fullname" .)) }}
{{- mergeOverwrite $named (deepCopy .Values.settings) | toYaml }}
{{- end }}

{{/* One of the settings as the operator has it, with the operator's default. Called with (list context "a.b" default). */}}
{{- define "itrain.setting" -}}
{{- $value := include "itrain.settings" (index . 0) | fromYaml }}
{{- range splitList "." (index . 1) }}
{{- $value = dig . "" ($value | default dict) }}
{{- end }}
{{- if kindIs "string" $value }}
{{- $value | default (index . 2) }}
{{- else if kindIs "bool" $value }}
{{- $value }}
{{- else }}
{{- $value | int64 }}
{{- end }}
{{- end }}

{{- define "itrain.metricsPort" -}}
{{- include "itrain.setting" (list . "metricsPort" 9090) }}
{{- end }}

{{- define "itrain.healthPort" -}}
{{- include "itrain.setting" (list . "healthPort" 8080) }}
{{- end }}

{{- define "itrain.leaseNamespace" -}}
{{- include "itrain.setting" (list . "lease.namespace" .Release.Namespace) }}
{{- end }}

{{/* What no schema can say. */}}
{{- define "itrain.check" -}}
{{- if not .Values.image.repository }}
{{- fail "image.repository: got \"\", allowed is where the operator's image lies, such as registry.example/itrain/operator. None is published: `make images ONLY=operator` builds build/images/operator.tar, docs/images.md says how it gets into a registry or onto a node" }}
{{- end }}
{{- if eq (include "itrain.metricsPort" .) (include "itrain.healthPort" .) }}
{{- fail (printf "settings.metricsPort: got %s, allowed is any port but settings.healthPort" (include "itrain.metricsPort" .)) }}
{{- end }}
{{- $retry := include "itrain.setting" (list . "lease.retrySeconds" 2) | int }}
{{- $renew := include "itrain.setting" (list . "lease.renewSeconds" 7) | int }}
{{- $duration := include "itrain.setting" (list . "lease.durationSeconds" 10) | int }}
{{- if not (and (lt $retry $renew) (lt $renew $duration)) }}
{{- fail (printf "settings.lease: got retrySeconds %d, renewSeconds %d, durationSeconds %d; allowed is retrySeconds < renewSeconds < durationSeconds" $retry $renew $duration) }}
{{- end }}
{{- if and (eq "false" (include "itrain.setting" (list . "lease.enabled" true))) (gt (int .Values.replicas) 1) }}
{{- fail (printf "replicas: got %d, allowed is at most 1 while settings.lease.enabled is false: all of them would act" (int .Values.replicas)) }}
{{- end }}
{{- if not (or .Values.serviceAccount.create .Values.serviceAccount.name) }}
{{- fail "serviceAccount.name: got \"\", allowed is the name of a ServiceAccount while serviceAccount.create is false" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
{{- fail "metrics.podMonitor.enabled: got true, allowed is one of serviceMonitor and podMonitor: both would count everything twice" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled: got true, allowed with metrics.service.enabled: it reads through that Service" }}
{{- end }}
{{- end }}
