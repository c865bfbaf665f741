{{/* Release `bridge` gives bridge-edge, bridge-worker, …; any other release NAME gives NAME-bridge-edge. */}}
{{- define "bridge.name" -}}
{{- $release := .Release.Name | replace "." "-" }}{{/* a Service's name has no dots */}}
{{- if contains "bridge" $release }}{{ $release | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-bridge" ($release | trunc 33 | trimSuffix "-") }}{{ end }}
{{- end }}

{{/* Labels by which a role's pods are selected. Call with (list . "worker"). They can never change. */}}
{{- define "bridge.selector" -}}
app.kubernetes.io/name: bridge
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of an object. Call with (list . "worker"). */}}
{{- define "bridge.labels" -}}
{{ include "bridge.selector" . }}
app.kubernetes.io/part-of: bridge
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "bridge.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* "true" if this chart runs Redis itself. */}}
{{- define "bridge.redis.bundled" -}}
{{- if not (or .Values.redis.url .Values.redis.existingSecret) }}true{{ end }}
{{- end }}

{{- define "bridge.access.secret" -}}
{{ .Values.access.existingSecret | default (printf "%s-access" (include "bridge.name" .)) }}
{{- end }}

{{/* "true" if nobody says who may place calls, so that a token is made up. */}}
{{- define "bridge.access.made" -}}
{{- with .Values.access }}{{ if not (or .tokens .existingSecret .oidc.issuer .open) }}true{{ end }}{{ end }}
{{- end }}

{{/* "true" if edges have an AC_TOKEN. */}}
{{- define "bridge.access.token" -}}
{{- if or .Values.access.tokens .Values.access.existingSecret (include "bridge.access.made" .) }}true{{ end }}
{{- end }}

{{- define "bridge.agent.secret" -}}
{{ .Values.agent.existingSecret | default (printf "%s-agent" (include "bridge.name" .)) }}
{{- end }}

{{- define "bridge.redis.secret" -}}
{{- if include "bridge.redis.bundled" . }}{{ .Values.redis.bundled.existingSecret | default (printf "%s-redis" (include "bridge.name" .)) }}
{{- else }}{{ .Values.redis.existingSecret | default (printf "%s-redis" (include "bridge.name" .)) }}{{ end }}
{{- end }}

{{/* A value that is made up once and then kept. Call with (dict "root" . "secret" NAME "key" KEY). */}}
{{- define "bridge.kept" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .secret }}
{{- with dig "data" .key "" $found }}{{ b64dec . }}{{ else }}{{ randAlphaNum 40 }}{{ end }}
{{- end }}

{{/* How long Kubernetes waits between SIGTERM and SIGKILL. Call with (dict "role" "edge" "pod" .Values.edge).
     15 s beyond the drain a pod hangs up, runs its last handlers and stores its last lines; the rest is reserve. */}}
{{- define "bridge.grace" -}}
{{- $needed := add (.pod.preStopSeconds | default 0) (ceil .pod.drainSeconds) 15 }}
{{- $given := .pod.terminationGracePeriodSeconds }}
{{- if kindIs "invalid" $given }}{{ add $needed 15 }}
{{- else if lt (int $given) (int $needed) }}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d, but a drain takes up to %d s (%s15 s to end calls after %s.drainSeconds): Kubernetes would kill calls that are being given away. Set it to %d or more, or to null" .role (int $given) (int $needed) (ternary (printf "preStopSeconds %d, " (int (.pod.preStopSeconds | default 0))) "" (hasKey .pod "preStopSeconds")) .role (int $needed)) }}
{{- else }}{{ int $given }}{{ end }}
{{- end }}

{{/* Bytes of a Kubernetes quantity such as 1Gi, or of what Redis calls 768mb; 0 if there is none. */}}
{{- define "bridge.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "kb" 1024 "mb" 1048576 "gb" 1073741824 }}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) }}
{{- if and . (hasKey $units $unit) }}{{ mulf (toString . | trimSuffix $unit | float64) (index $units $unit) | int64 }}{{ else }}0{{ end }}
{{- end }}
