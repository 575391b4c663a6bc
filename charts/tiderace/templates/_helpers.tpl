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

{{/*
Refuses a second operator for the same jobs: two that don't share a Lease would both act. Releases that watch different namespaces may stand side
by side. Helm sees what is there only when it installs or upgrades (`helm template` and Argo CD don't), and in all namespaces only for who may make
cluster-wide roles; others are shown their release's own namespace.
*/}}
{{- define "tiderace.alone" -}}
{{- $own := .Values.watchNamespaces }}
{{- $where := ternary "" .Release.Namespace (and (not $own) .Values.rbac.create) }}
{{- range (lookup "apps/v1" "Deployment" $where "").items }}
{{- $labels := .metadata.labels | default dict }}
{{- $isOperator := and (eq (get $labels "app.kubernetes.io/name") "tiderace") (eq (get $labels "app.kubernetes.io/component") "operator") }}
{{- $isThis := and (eq .metadata.namespace $.Release.Namespace) (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) }}
{{- if and $isOperator (not $isThis) }}
{{- $theirs := list }}
{{- range (first .spec.template.spec.containers).args }}
{{- if hasPrefix "--watch-namespace=" . }}{{ $theirs = append $theirs (trimPrefix "--watch-namespace=" .) }}{{ end }}
{{- end }}
{{- $other := printf "the operator %s in the namespace %s" .metadata.name .metadata.namespace }}
{{- if not $theirs }}
{{- fail (printf "%s watches all namespaces already, and two operators must not act on the same jobs: upgrade that release, or narrow it with watchNamespaces" $other) }}
{{- else if not $own }}
{{- fail (printf "%s watches some namespaces already (%s), and two operators must not act on the same jobs: set watchNamespaces to others, or uninstall it" $other (join ", " $theirs)) }}
{{- else }}
{{- range $own }}
{{- if has . $theirs }}{{ fail (printf "%s watches the namespace %s already, and two operators must not act on the same jobs: leave it out of watchNamespaces" $other .) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
