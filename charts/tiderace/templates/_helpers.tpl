{{- define "tiderace.name" -}}
{{- if contains "tiderace" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-tiderace" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "tiderace.operator" -}}{{ include "tiderace.name" . }}-operator{{- end }}
{{- define "tiderace.planner" -}}{{ include "tiderace.name" . }}-planner{{- end }}
{{- define "tiderace.webhook" -}}{{ include "tiderace.name" . }}-webhook{{- end }}

{{/* What a selector may name: it never changes. */}}
{{- define "tiderace.selector" -}}
app.kubernetes.io/name: tiderace
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tiderace.labels" -}}
{{ include "tiderace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tiderace
{{- end }}

{{/* An image's full name, from {repository, tag, digest} and the chart's version. */}}
{{- define "tiderace.image" -}}
{{- $image := index . 0 }}{{ $root := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "tiderace.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "tiderace.operator" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* What the "restricted" Pod Security Standard asks of a pod, and a bit more. */}}
{{- define "tiderace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "tiderace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
