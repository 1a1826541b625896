{{- define "premoe.retrieval.config" -}}
{{ include "premoe.serverSettings" (dict "root" . "prefix" "PREMOE_RETRIEVAL") }}
{{- include "premoe.tls.guests" (dict "root" . "prefix" "PREMOE_RETRIEVAL") }}
{{- include "premoe.tracingSettings" . }}
PREMOE_RETRIEVAL_STORE_URL: {{ .Values.objectStore.url | quote }}
PREMOE_RETRIEVAL_INDEX: {{ .Values.retrieval.index }}
{{- with include "premoe.qdrantUrl" . }}
PREMOE_RETRIEVAL_QDRANT: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "premoe.retrieval.envFrom" -}}
- configMapRef: {name: {{ include "premoe.componentName" (dict "root" . "component" "retrieval") }}}
{{ include "premoe.objectStoreEnvFrom" . }}
{{- end -}}

{{- define "premoe.retrieval.env" -}}
{{- with .Values.qdrant.existingSecret }}
- name: PREMOE_RETRIEVAL_QDRANT_API_KEY
  valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.qdrant.key | quote }}}}
{{- end }}
{{- end -}}

{{- define "premoe.retrieval.ports" -}}{{ include "premoe.grpcPorts" . }}{{- end -}}
{{- define "premoe.retrieval.servicePorts" -}}{{- end -}}
{{- define "premoe.retrieval.probes" -}}{{ include "premoe.grpcProbes" . }}{{- end -}}
{{- define "premoe.retrieval.podLabels" -}}{{- end -}}
{{- define "premoe.retrieval.volumes" -}}{{- end -}}
{{- define "premoe.retrieval.volumeMounts" -}}{{- end -}}
