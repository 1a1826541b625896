{{- define "premoe.gateway.config" -}}
{{ include "premoe.serverSettings" (dict "root" . "prefix" "PREMOE_GATEWAY") }}
{{- include "premoe.tracingSettings" . }}
PREMOE_GATEWAY_HTTP_HOST: {{ .Values.listenAddress | quote }}
PREMOE_GATEWAY_HTTP_PORT: "8000"
PREMOE_GATEWAY_WORKERS: {{ prepend .Values.gateway.workers (include "premoe.target" (dict "root" . "component" "workers")) | join "," | quote }}
PREMOE_GATEWAY_RETRIEVAL: {{ include "premoe.target" (dict "root" . "component" "retrieval") }}
PREMOE_GATEWAY_WORKERS_FILE: /etc/premoe/workers/workers
{{- with .Values.gateway.keys.existingSecret }}
PREMOE_GATEWAY_KEYS_FILE: /etc/premoe/keys/{{ $.Values.gateway.keys.key }}
{{- end }}
{{- with .Values.gateway.tls.existingSecret }}
PREMOE_GATEWAY_HTTP_TLS_CERT: /etc/premoe/https/tls.crt
PREMOE_GATEWAY_HTTP_TLS_KEY: /etc/premoe/https/tls.key
{{- end }}
PREMOE_GATEWAY_REQUEST_TIMEOUT_S: {{ .Values.gateway.requestTimeoutSeconds | quote }}
PREMOE_GATEWAY_CONSOLE: {{ .Values.gateway.console | quote }}
{{- end -}}

{{- define "premoe.gateway.envFrom" -}}
- configMapRef: {name: {{ include "premoe.componentName" (dict "root" . "component" "gateway") }}}
{{- end -}}

{{- define "premoe.gateway.env" -}}{{- end -}}

{{- define "premoe.gateway.ports" -}}
ports:
  - {name: http, containerPort: 8000, protocol: TCP}
  {{- include "premoe.sidePorts" . | nindent 2 }}
{{- end -}}

{{/* Ready means that the gateway itself answers: its gRPC health says whether a worker serves, and before the first
PrunedModel that would hold up the installation. */}}
{{- define "premoe.gateway.probes" -}}
startupProbe:
  {{- include "premoe.gateway.alive" . | nindent 2 }}
  periodSeconds: 2
  failureThreshold: {{ divf .values.startupTimeoutSeconds 2 | ceil | int }}
readinessProbe:
  {{- include "premoe.gateway.alive" . | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  grpc: {port: 50053, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* Labels by which workers' NetworkPolicies know who may call them. */}}
{{- define "premoe.callerLabels" -}}
app.kubernetes.io/name: premoe
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{ include "premoe.gateway.podLabels" . }}
{{- end -}}

{{- define "premoe.gateway.podLabels" -}}
premoe.dev/calls-workers: "true"
{{- end -}}

{{/* Takes (root). */}}
{{- define "premoe.gateway.alive" -}}
httpGet:
  path: /healthz
  port: http
  {{- if .root.Values.gateway.tls.existingSecret }}
  scheme: HTTPS
  {{- end }}
{{- end -}}

{{/* Where clients in the cluster reach it. */}}
{{- define "premoe.gateway.url" -}}
{{ ternary "https" "http" (ne .Values.gateway.tls.existingSecret "") }}://{{ include "premoe.componentName" (dict "root" . "component" "gateway") }}.{{ .Release.Namespace }}.svc:{{ .Values.gateway.service.port }}
{{- end -}}

{{/* The operator writes it, the gateway reads it: workers in other namespaces. */}}
{{- define "premoe.gateway.workersConfigMap" -}}
{{ include "premoe.componentName" (dict "root" . "component" "gateway") }}-workers
{{- end -}}

{{- define "premoe.gateway.volumes" -}}
- name: workers
  configMap: {name: {{ include "premoe.gateway.workersConfigMap" . }}, optional: true}
{{- with .Values.gateway.keys.existingSecret }}
- name: keys
  secret: {secretName: {{ . | quote }}}
{{- end }}
{{- with .Values.gateway.tls.existingSecret }}
- name: https
  secret: {secretName: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- define "premoe.gateway.volumeMounts" -}}
- {name: workers, mountPath: /etc/premoe/workers, readOnly: true}
{{- if .Values.gateway.keys.existingSecret }}
- {name: keys, mountPath: /etc/premoe/keys, readOnly: true}
{{- end }}
{{- if .Values.gateway.tls.existingSecret }}
- {name: https, mountPath: /etc/premoe/https, readOnly: true}
{{- end }}
{{- end -}}
