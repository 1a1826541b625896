{{- define "premoe.expert-store.config" -}}
{{ include "premoe.serverSettings" (dict "root" . "prefix" "PREMOE_EXPERT_STORE") }}
{{- include "premoe.tls.guests" (dict "root" . "prefix" "PREMOE_EXPERT_STORE") }}
{{- include "premoe.tracingSettings" . }}
PREMOE_EXPERT_STORE_STORE_URL: {{ .Values.objectStore.url | quote }}
PREMOE_EXPERT_STORE_MEMORY_BYTES: {{ .Values.expertStore.memoryBytes | int64 | quote }}
PREMOE_EXPERT_STORE_THREADS: {{ .Values.expertStore.threads | quote }}
{{- end -}}

{{- define "premoe.expert-store.envFrom" -}}
- configMapRef: {name: {{ include "premoe.componentName" (dict "root" . "component" "expert-store") }}}
{{ include "premoe.objectStoreEnvFrom" . }}
{{- end -}}

{{- define "premoe.expert-store.env" -}}
{{- with .Values.redis.existingSecret }}
- name: PREMOE_EXPERT_STORE_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.redis.key | quote }}}}
{{- end }}
{{- end -}}

{{- define "premoe.expert-store.ports" -}}{{ include "premoe.grpcPorts" . }}{{- end -}}
{{- define "premoe.expert-store.probes" -}}{{ include "premoe.grpcProbes" . }}{{- end -}}
{{- define "premoe.expert-store.podLabels" -}}{{- end -}}
{{- define "premoe.expert-store.volumes" -}}{{- end -}}
{{- define "premoe.expert-store.volumeMounts" -}}{{- end -}}
