{{/* Everything that a change of values should restart the operator for. */}}
{{- define "premoe.operator.config" -}}
{{ include "premoe.operator.settings" . }}
{{ include "premoe.operator.release" . }}
{{- end -}}

{{- define "premoe.operator.settings" -}}
PREMOE_OPERATOR_WATCH_NAMESPACES: {{ join "," .Values.watchNamespaces | quote }}
PREMOE_OPERATOR_WATCH_CERTIFICATES: {{ eq .Values.tls.mode "CertManager" | quote }}
PREMOE_OPERATOR_RELEASE_FILE: /etc/premoe/operator/release.json
PREMOE_OPERATOR_LEASE_NAME: premoe-operator
PREMOE_OPERATOR_WORKERS_CONFIG_MAP: {{ include "premoe.gateway.workersConfigMap" . }}
PREMOE_OPERATOR_HTTP_HOST: {{ .Values.listenAddress | quote }}
PREMOE_OPERATOR_HTTP_PORT: "8080"
{{ include "premoe.logSettings" (dict "root" . "prefix" "PREMOE_OPERATOR") }}
{{- include "premoe.tls.settings" (dict "root" . "prefix" "PREMOE_OPERATOR") }}
{{- include "premoe.tracingSettings" . }}
{{- end -}}

{{/* What the operator gives to workers and Jobs. Written as YAML, mounted as JSON. */}}
{{- define "premoe.operator.release" -}}
workerImage: {{ include "premoe.image" (dict "root" . "image" .Values.worker.image) | quote }}
vllmImage: {{ include "premoe.image" (dict "root" . "image" .Values.worker.vllmImage) | quote }}
imagePullPolicy: {{ .Values.worker.image.pullPolicy }}
imagePullSecrets:
  {{- range .Values.global.imagePullSecrets }}
  - {{ .name | quote }}
  {{- else }} []
  {{- end }}
storeUrl: {{ .Values.objectStore.url | quote }}
storeSecretName: {{ .Values.objectStore.existingSecret | quote }}
{{- range $key, $component := dict "expertStore" "expert-store" "retrieval" "retrieval" }}
{{- $names := dict "root" $ "component" $component }}
{{ $key }}:
  name: {{ include "premoe.componentName" $names }}
  namespace: {{ $.Release.Namespace | quote }}
  port: 50051
  {{- if eq $component "expert-store" }}
  blobsPort: 50055
  {{- end }}
  podLabels:
    {{- include "premoe.selectorLabels" $names | nindent 4 }}
{{- end }}
gateway:
  namespace: {{ .Release.Namespace | quote }}
  url: {{ include "premoe.gateway.url" . }}
  podLabels:
    {{- include "premoe.callerLabels" . | nindent 4 }}
operator:
  namespace: {{ .Release.Namespace | quote }}
  podLabels:
    {{- include "premoe.selectorLabels" (dict "root" . "component" "operator") | nindent 4 }}
tls:
  mode: {{ .Values.tls.mode }}
  {{- if eq .Values.tls.mode "Secret" }}
  secretName: {{ .Values.tls.secretName | quote }}
  {{- else if eq .Values.tls.mode "CertManager" }}
  issuerRef:
    {{- toYaml .Values.tls.issuerRef | nindent 4 }}
  {{- end }}
  {{- if ne .Values.tls.mode "Disabled" }}
  serverName: {{ include "premoe.tls.serverName" . }}
  release: {{ include "premoe.tls.release" . }}
  duration: {{ .Values.tls.duration }}
  renewBefore: {{ .Values.tls.renewBefore }}
  checkRoles: {{ .Values.tls.checkRoles }}
  {{- end }}
{{- with .Values.tracing.endpoint }}
tracing:
  endpoint: {{ . | quote }}
  sampleRatio: {{ $.Values.tracing.sampleRatio | quote }}
{{- end }}
metrics:
  enabled: {{ .Values.metrics.enabled }}
  annotations: {{ .Values.metrics.annotations }}
  peers: {{ toJson .Values.networkPolicy.ingress.metrics }}
workerRedis:
  secretName: {{ .Values.worker.redis.existingSecret | quote }}
  key: {{ .Values.worker.redis.key | quote }}
workerObjectStore:
  read: {{ .Values.worker.objectStore.read }}
  secretName: {{ .Values.worker.objectStore.existingSecret | quote }}
drain:
  {{- toYaml .Values.worker.drain | nindent 2 }}
clusterDomain: {{ .Values.clusterDomain }}
listenAddress: {{ .Values.listenAddress | quote }}
podSecurityContext:
  {{- include "premoe.podSecurity" . | nindent 2 }}
extraEnv:
  {{- toYaml (concat (list) (include "premoe.operator.workerTracing" . | fromYamlArray) .Values.worker.extraEnv | default list) | nindent 2 }}
extraVolumes:
  {{- toYaml .Values.worker.extraVolumes | nindent 2 }}
extraVolumeMounts:
  {{- toYaml .Values.worker.extraVolumeMounts | nindent 2 }}
podTemplate:
  allowedPaths:
    {{- toYaml .Values.podTemplate.allowedPaths | nindent 4 }}
egress:
  {{- toYaml (pick .Values.networkPolicy.egress "dns" "s3" "hub" "identity" "redis" "otlp") | nindent 2 }}
{{- end -}}

{{/* The OTLP protocol of workers, where it is not the usual one. */}}
{{- define "premoe.operator.workerTracing" -}}
{{- if and .Values.tracing.endpoint (ne .Values.tracing.protocol "grpc") -}}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .Values.tracing.protocol }}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{- define "premoe.operator.env" -}}
- name: PREMOE_OPERATOR_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: PREMOE_OPERATOR_IDENTITY
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- end -}}

{{- define "premoe.operator.envFrom" -}}
- configMapRef: {name: {{ include "premoe.componentName" (dict "root" . "component" "operator") }}-env}
{{- end -}}

{{- define "premoe.operator.ports" -}}
ports:
  - {name: http, containerPort: 8080, protocol: TCP}
{{- end -}}

{{- define "premoe.operator.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  failureThreshold: {{ divf .values.startupTimeoutSeconds 2 | ceil | int }}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}

{{- define "premoe.operator.podLabels" -}}{{- end -}}

{{- define "premoe.operator.volumeMounts" -}}
- {name: release, mountPath: /etc/premoe/operator, readOnly: true}
{{- end -}}

{{- define "premoe.operator.volumes" -}}
- name: release
  configMap: {name: {{ include "premoe.componentName" (dict "root" . "component" "operator") }}}
{{- end -}}
