{{/* Security context of a container: the `restricted` profile and a read-only root. */}}
{{- define "premoe.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "premoe.podSecurity" -}}
{{- toYaml .Values.podSecurityContext -}}
{{- end -}}

{{- define "premoe.imagePullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Settings that every gRPC process has. Takes (root, prefix). */}}
{{- define "premoe.serverSettings" -}}
{{- $root := .root -}}
{{ .prefix }}_HOST: {{ $root.Values.listenAddress | quote }}
{{ .prefix }}_PORT: "50051"
{{ .prefix }}_HEALTH_PORT: "50053"
{{- if $root.Values.metrics.enabled }}
{{ .prefix }}_METRICS_PORT: "50054"
{{- end }}
{{ .prefix }}_DRAIN_DELAY_S: {{ $root.Values.drain.delaySeconds | quote }}
{{ .prefix }}_GRACE_S: {{ $root.Values.drain.graceSeconds | quote }}
{{ .prefix }}_MAX_CONNECTION_AGE_S: {{ $root.Values.drain.maxConnectionAgeSeconds | quote }}
{{ include "premoe.logSettings" . }}
{{- include "premoe.tls.settings" . }}
{{- include "premoe.tls.admission" . }}
{{- end -}}

{{/* Takes (root, prefix). */}}
{{- define "premoe.logSettings" -}}
{{ .prefix }}_LOG_LEVEL: {{ .root.Values.logLevel }}
{{ .prefix }}_LOG_FORMAT: {{ .root.Values.logFormat }}
{{- end -}}

{{- define "premoe.tracingSettings" -}}
{{- with .Values.tracing.endpoint }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
OTEL_EXPORTER_OTLP_PROTOCOL: {{ $.Values.tracing.protocol }}
OTEL_TRACES_SAMPLER: parentbased_traceidratio
OTEL_TRACES_SAMPLER_ARG: {{ $.Values.tracing.sampleRatio | quote }}
{{- end }}
{{- end -}}

{{/* Variables that need the pod: where traces say they come from, and a home that can be written to. */}}
{{- define "premoe.podEnv" -}}
- name: HOME
  value: /tmp
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE),k8s.node.name=$(NODE_NAME)
{{- end -}}

{{/* Start-up, readiness and liveness by the plain-text health port. Takes (values). */}}
{{- define "premoe.grpcProbes" -}}
startupProbe:
  grpc: {port: 50053}
  periodSeconds: 2
  failureThreshold: {{ divf .values.startupTimeoutSeconds 2 | ceil | int }}
readinessProbe:
  grpc: {port: 50053}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  # Stays SERVING while the process drains.
  grpc: {port: 50053, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* The ConfigMap of a component and its checksum come from one template, premoe.COMPONENT.config. Takes (root, component). */}}
{{- define "premoe.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "premoe.metadata" (merge (dict "name" (include "premoe.componentName" .)) .) | nindent 2 }}
data:
  {{- include (printf "premoe.%s.config" .component) .root | nindent 2 }}
{{- end -}}

{{/* Takes (root, component, values). */}}
{{- define "premoe.serviceAccount" -}}
{{- if .values.serviceAccount.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "premoe.metadata" (merge (dict "name" (include "premoe.serviceAccountName" .) "annotations" .values.serviceAccount.annotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end -}}

{{/* Takes (root, component, values). */}}
{{- define "premoe.disruptionBudget" -}}
{{- if .values.pdb.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "premoe.metadata" (merge (dict "name" (include "premoe.componentName" .)) .) | nindent 2 }}
spec:
  maxUnavailable: 1
  # A pod that is broken anyway must not hold up a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "premoe.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* A headless Service: gRPC clients see every pod and spread their calls themselves. Takes (root, component). */}}
{{- define "premoe.headlessService" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "premoe.metadata" (merge (dict "name" (include "premoe.componentName" .)) .) | nindent 2 }}
spec:
  clusterIP: None
  selector:
    {{- include "premoe.selectorLabels" . | nindent 4 }}
  ports:
    - {name: grpc, port: 50051, targetPort: grpc, protocol: TCP}
    {{- with include (printf "premoe.%s.servicePorts" .component) .root }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The Deployment of a component. Takes (root, component, values); the rest comes from premoe.COMPONENT.{config,env,envFrom,ports,probes,volumes,volumeMounts,podLabels}. */}}
{{- define "premoe.deployment" -}}
{{- $part := printf "premoe.%s." .component -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "premoe.metadata" (merge (dict "name" (include "premoe.componentName" .)) .) | nindent 2 }}
spec:
  {{- if not (kindIs "invalid" .values.replicas) }}
  replicas: {{ .values.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels:
      {{- include "premoe.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "premoe.podLabels" . | nindent 8 }}
        {{- with include (print $part "podLabels") .root }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        checksum/config: {{ include (print $part "config") .root | sha256sum }}
        {{- with merge (dict) .values.podAnnotations (include "premoe.scrapeAnnotations" . | fromYaml) .root.Values.commonAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "premoe.podSpec" . | nindent 6 }}
{{- end -}}

{{/* Takes what premoe.deployment takes. */}}
{{- define "premoe.podSpec" -}}
{{- $part := printf "premoe.%s." .component -}}
serviceAccountName: {{ include "premoe.serviceAccountName" . }}
automountServiceAccountToken: {{ eq .component "operator" }}
# Variables of Services such as PREMOE_GATEWAY_PORT would be taken for settings.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
{{- include "premoe.imagePullSecrets" .root }}
securityContext:
  {{- include "premoe.podSecurity" .root | nindent 2 }}
{{- include "premoe.placement" . }}
containers:
  - name: {{ .component }}
    image: {{ include "premoe.image" (dict "root" .root "image" .values.image) | quote }}
    imagePullPolicy: {{ .values.image.pullPolicy }}
    command: {{ toJson .values.command }}
    {{- include (print $part "ports") .root | nindent 4 }}
    {{- include (print $part "probes") . | nindent 4 }}
    envFrom:
      {{- with include (print $part "envFrom") .root }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .values.extraEnvFrom }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    env:
      {{- include "premoe.podEnv" .root | nindent 6 }}
      {{- with include (print $part "env") .root }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    resources:
      {{- toYaml .values.resources | nindent 6 }}
    securityContext:
      {{- include "premoe.containerSecurity" .root | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if ne .root.Values.tls.mode "Disabled" }}
      - {name: tls, mountPath: /etc/premoe/tls, readOnly: true}
      {{- end }}
      {{- with include (print $part "volumeMounts") .root }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: {{ .root.Values.tmpSize | quote }}}
  {{- if ne .root.Values.tls.mode "Disabled" }}
  - name: tls
    secret: {secretName: {{ include "premoe.tls.secretName" . | quote }}}
  {{- end }}
  {{- with include (print $part "volumes") .root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Where pods run. Takes (root, component, values). */}}
{{- define "premoe.placement" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "premoe.selectorLabels" . | fromYaml)) }}
{{- $host := dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" }}
topologySpreadConstraints:
{{- range .values.topologySpreadConstraints | default (list $host) }}
  - {{- toYaml (merge (dict) . $selector) | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Variables of object storage come from the Secret as they are. */}}
{{- define "premoe.objectStoreEnvFrom" -}}
{{- with .Values.objectStore.existingSecret }}
- secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* Ports of a gRPC server. */}}
{{- define "premoe.grpcPorts" -}}
ports:
  - {name: grpc, containerPort: 50051, protocol: TCP}
  {{- include "premoe.sidePorts" . | nindent 2 }}
{{- end -}}

{{/* Ports beside the one that a component is for. */}}
{{- define "premoe.sidePorts" -}}
- {name: health, containerPort: 50053, protocol: TCP}
{{- if .Values.metrics.enabled }}
- {name: metrics, containerPort: 50054, protocol: TCP}
{{- end }}
{{- end -}}

{{/* Annotations by which a Prometheus without its operator finds pods. Takes (root, component). */}}
{{- define "premoe.scrapeAnnotations" -}}
{{- if and .root.Values.metrics.annotations (or .root.Values.metrics.enabled (eq .component "operator")) -}}
prometheus.io/scrape: "true"
prometheus.io/path: /metrics
prometheus.io/port: {{ ternary "8080" "50054" (eq .component "operator") | quote }}
{{- end }}
{{- end -}}
