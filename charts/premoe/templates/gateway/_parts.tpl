{{- define "premoe.gateway.config" -}}
{{ include "premoe.serverSettings" (dict "root" . "prefix" "PREMOE_GATEWAY") }}
{{- include "premoe.tracingSettings" . }}
PREMOE_GATEWAY_HTTP_HOST: {{ .Values.listenAddress | quote }}
PREMOE_GATEWAY_HTTP_PORT: "8000"
PREMOE_GATEWAY_WORKERS: {{ prepend .Values.gateway.workers (include "premoe.target" (dict "root" . "component" "workers")) | join "," | quote }}
PREMOE_GATEWAY_RETRIEVAL: {{ include "premoe.target" (dict "root" . "component" "retrieval") }}
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
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  failureThreshold: {{ divf .values.startupTimeoutSeconds 2 | ceil | int }}
readinessProbe:
  httpGet: {path: /healthz, port: http}
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

{{- define "premoe.gateway.volumes" -}}{{- end -}}
{{- define "premoe.gateway.volumeMounts" -}}{{- end -}}
