{{/* What every pod of ours has in common, up to its containers. Call with (list . "worker"). */}}
{{- define "bridge.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "bridge.name" $root }}
automountServiceAccountToken: false
# Kubernetes would add variables for every Service of the namespace; one of them could be taken for a setting.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $root.Values.scheduling }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "bridge.spread" -}}
{{- $root := index . 0 }}
{{- if $root.Values.scheduling.topologySpread }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "bridge.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "bridge.container.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Where Redis is, as variables. */}}
{{- define "bridge.env.redis" -}}
{{- if include "bridge.redis.bundled" . }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "bridge.redis.secret" . }}, key: password}}
- name: REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "bridge.name" . }}-redis:6379/0
{{- else }}
- name: REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "bridge.redis.secret" . }}, key: url}}
{{- end }}
{{- if or .Values.redis.mediaUrl .Values.redis.existingSecret }}
- name: BRIDGE_MEDIA_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ ternary (printf "%s-media" (include "bridge.name" .)) (include "bridge.redis.secret" .) (not (empty .Values.redis.mediaUrl)) }}, key: media-url, optional: {{ empty .Values.redis.mediaUrl }}}}
{{- end }}
{{- end }}

{{/* What callers must show; not for workers. */}}
{{- define "bridge.env.access" -}}
{{- if include "bridge.access.token" . }}
- name: AC_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "bridge.access.secret" . }}, key: ac-token, optional: {{ not (empty (and .Values.access.existingSecret (or .Values.access.oidc.issuer .Values.access.open))) }}}}
{{- end }}
{{- end }}

{{/* The variables of an edge or a worker. Call with (list . "worker"). */}}
{{- define "bridge.env" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- $pod := index $root.Values $role }}
{{- include "bridge.env.redis" $root }}
{{- if eq $role "edge" }}
{{- include "bridge.env.access" $root }}
- name: BRIDGE_PORT
  value: "8080"
- name: BRIDGE_EDGE_CALLS
  value: {{ int $pod.calls | quote }}
{{- with $root.Values.access.oidc }}
{{- if .issuer }}
- name: BRIDGE_OIDC_ISSUER
  value: {{ .issuer | quote }}
- name: BRIDGE_OIDC_AUDIENCE
  value: {{ .audience | quote }}
{{- end }}
{{- end }}
{{- with $root.Values.access.open }}
- name: BRIDGE_OPEN_DOOR
  value: "true"
{{- end }}
{{- else }}
{{- if $root.Values.agent.simulated }}
- name: DEEPGRAM_API_KEY
  value: simulated
- name: DEEPGRAM_URL
  value: ws://{{ include "bridge.name" $root }}-agent:8900/v1/agent/converse
{{- else }}
- name: DEEPGRAM_API_KEY
  valueFrom: {secretKeyRef: {name: {{ include "bridge.agent.secret" $root }}, key: deepgram-api-key}}
{{- with $root.Values.agent.url }}
- name: DEEPGRAM_URL
  value: {{ . | quote }}
{{- end }}
{{- end }}
- name: BRIDGE_WORKER_CALLS
  value: {{ int $pod.calls | quote }}
{{- with $root.Values.agent.limit }}
- name: BRIDGE_AGENT_LIMIT
  value: {{ int . | quote }}
{{- end }}
{{- end }}
- name: BRIDGE_ADMIN_PORT
  value: "9090"
{{- if or $root.Values.access.adminToken $root.Values.access.existingSecret }}
- name: BRIDGE_ADMIN_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "bridge.access.secret" $root }}, key: admin-token, optional: {{ empty $root.Values.access.adminToken }}}}
{{- end }}
- name: BRIDGE_DRAIN_SECONDS
  value: {{ $pod.drainSeconds | quote }}
- name: BRIDGE_LOG_FORMAT
  value: json
- name: BRIDGE_LOG_LEVEL
  value: {{ $root.Values.logLevel }}
{{- range $name, $value := $root.Values.settings }}
- name: {{ $name }}
  value: {{ ternary (int64 $value) $value (and (kindIs "float64" $value) (eq (float64 (int64 $value)) (float64 $value))) | quote }}
{{- end }}
{{- with $root.Values.app.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A Deployment of edges or workers. Call with (list . "worker"). */}}
{{- define "bridge.deployment" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- $pod := index $root.Values $role }}
{{- $ours := or $root.Values.app.inline $root.Values.app.configMap }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "bridge.name" $root }}-{{ $role }}
  labels: {{- include "bridge.labels" . | nindent 4 }}
spec:
  {{- if eq $root.Values.autoscaling.kind "none" }}
  replicas: {{ int $pod.replicas }}
  {{- else }}
  {{- with lookup "apps/v1" "Deployment" $root.Release.Namespace (printf "%s-%s" (include "bridge.name" $root) $role) }}
  # As many as there are now. Were it left out, the upgrade that begins autoscaling would leave one pod.
  replicas: {{ int .spec.replicas }}
  {{- end }}
  {{- end }}
  selector:
    matchLabels: {{- include "bridge.selector" . | nindent 6 }}
  {{- if eq $role "worker" }}
  # So long after a new worker is ready the next old one ends: the last one has given its calls away by then, and few
  # calls move twice in one roll-out.
  minReadySeconds: {{ min 30 (ceil $pod.drainSeconds | int) }}
  {{- end }}
  # New pods first: calls need somewhere to go.
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  template:
    metadata:
      labels: {{- include "bridge.selector" . | nindent 8 }}
        bridge/admin: "true"
      annotations:
        # Settings, secrets and the application are read once, at the start: what changes them replaces the pods.
        checksum/app: {{ $root.Values.app.inline | sha256sum }}
        checksum/secrets: {{ list $root.Values.access (omit $root.Values.agent "simulated" "limit" "url") $root.Values.redis.url $root.Values.redis.mediaUrl | toJson | sha256sum }}
    spec:
      {{- include "bridge.pod" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "bridge.grace" (dict "role" $role "pod" $pod) }}
      {{- include "bridge.spread" . | nindent 6 }}
      containers:
        - name: {{ $role }}
          image: {{ include "bridge.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [bridgectl, {{ $role }}, /app/{{ $root.Values.app.file }}]
          env: {{- include "bridge.env" . | nindent 12 }}
          {{- with $root.Values.app.envFrom }}
          envFrom: {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            {{- if eq $role "edge" }}
            - {name: calls, containerPort: 8080}
            {{- end }}
            - {name: admin, containerPort: 9090}
          # The first probe to succeed; until then the other two wait. An application may import for a while.
          startupProbe:
            httpGet: {path: /healthz, port: admin}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 60
          readinessProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          # Slow on purpose: other pods take the calls of one that stands still within seconds, and a restart of one
          # that is only short of CPU would cost calls.
          livenessProbe:
            httpGet: {path: /healthz, port: admin}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          {{- if and (eq $role "edge") $pod.preStopSeconds }}
          lifecycle:
            preStop:
              exec: {command: [python, -c, "import time; time.sleep({{ $pod.preStopSeconds }})"]}
          {{- end }}
          resources: {{- toYaml $pod.resources | nindent 12 }}
          {{- include "bridge.container.security" $root | nindent 10 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- if $ours }}
            - {name: app, mountPath: /app, readOnly: true}
            {{- end }}
            {{- if $root.Values.redis.tlsSecret }}
            - {name: redis-tls, mountPath: /etc/bridge/redis, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- if $ours }}
        - name: app
          configMap: {name: {{ $root.Values.app.configMap | default (printf "%s-app" (include "bridge.name" $root)) }}}
        {{- end }}
        {{- with $root.Values.redis.tlsSecret }}
        - name: redis-tls
          secret: {secretName: {{ . }}}
        {{- end }}
{{- end }}
