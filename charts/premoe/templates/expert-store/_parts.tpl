{{- define "premoe.expert-store.config" -}}
{{ include "premoe.serverSettings" (dict "root" . "prefix" "PREMOE_EXPERT_STORE") }}
{{- include "premoe.tls.guests" (dict "root" . "prefix" "PREMOE_EXPERT_STORE") }}
{{- include "premoe.tracingSettings" . }}
PREMOE_EXPERT_STORE_STORE_URL: {{ .Values.objectStore.url | quote }}
PREMOE_EXPERT_STORE_MEMORY_BYTES: {{ .Values.expertStore.memoryBytes | int64 | quote }}
PREMOE_EXPERT_STORE_THREADS: {{ .Values.expertStore.threads | quote }}
PREMOE_EXPERT_STORE_CACHE_DIR: {{ include "premoe.expert-store.cacheFolder" . }}
PREMOE_EXPERT_STORE_CACHE_BYTES: {{ include "premoe.expert-store.cacheBytes" . | quote }}
PREMOE_EXPERT_STORE_LEASE_S: {{ .Values.expertStore.leaseSeconds | quote }}
{{- with .Values.expertStore.http }}
{{- if .enabled }}
PREMOE_EXPERT_STORE_HTTP_PORT: "50055"
PREMOE_EXPERT_STORE_HTTP_PLAIN: {{ .plain | quote }}
PREMOE_EXPERT_STORE_BYTES_CONGESTION_CONTROL: {{ .congestionControl | quote }}
{{- with .urlKey.existingSecret }}
PREMOE_EXPERT_STORE_URL_KEY: /etc/premoe/url-key/keys
PREMOE_EXPERT_STORE_PEERS: {{ include "premoe.host" (dict "root" $ "component" "expert-store") }}:50055
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "premoe.expert-store.cacheFolder" -}}/var/lib/premoe/blobs{{- end -}}

{{/* The volume is a little larger than what blobs take: blocks of disks, folders, the index. */}}
{{- define "premoe.expert-store.cacheBytes" -}}
{{- div (mul (include "premoe.bytes" .Values.expertStore.cache.size | int64) 15) 16 -}}
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
{{- if .Values.expertStore.http.enabled }}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: PREMOE_EXPERT_STORE_ADVERTISE
  value: {{ ternary "[$(POD_IP)]:50055" "$(POD_IP):50055" (contains ":" .Values.listenAddress) | quote }}
{{- end }}
{{- end -}}

{{- define "premoe.expert-store.ports" -}}
{{ include "premoe.grpcPorts" . }}
{{- if .Values.expertStore.http.enabled }}
  - {name: blobs, containerPort: 50055, protocol: TCP}
{{- end }}
{{- end -}}

{{- define "premoe.expert-store.servicePorts" -}}
{{- if .Values.expertStore.http.enabled -}}
- {name: blobs, port: 50055, targetPort: blobs, protocol: TCP}
{{- end -}}
{{- end -}}

{{- define "premoe.expert-store.probes" -}}{{ include "premoe.grpcProbes" . }}{{- end -}}
{{- define "premoe.expert-store.podLabels" -}}{{- end -}}

{{- define "premoe.expert-store.volumes" -}}
{{- $cache := .Values.expertStore.cache -}}
- name: blobs
  {{- if $cache.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $cache.existingClaim | quote }}}
  {{- else if $cache.hostPath }}
  # A folder that the kubelet made would be root's alone.
  hostPath: {path: {{ $cache.hostPath | quote }}, type: Directory}
  {{- else }}
  emptyDir: {{ ternary (dict "medium" "Memory" "sizeLimit" $cache.size) (dict "sizeLimit" $cache.size) (eq $cache.medium "memory") | toJson }}
  {{- end }}
{{- if .Values.expertStore.http.enabled }}
{{- with .Values.expertStore.http.urlKey }}
{{- if .existingSecret }}
- name: url-key
  secret:
    secretName: {{ .existingSecret | quote }}
    items: [{key: {{ .key | quote }}, path: keys}]
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "premoe.expert-store.volumeMounts" -}}
- {name: blobs, mountPath: {{ include "premoe.expert-store.cacheFolder" . }}}
{{- if and .Values.expertStore.http.enabled .Values.expertStore.http.urlKey.existingSecret }}
- {name: url-key, mountPath: /etc/premoe/url-key, readOnly: true}
{{- end }}
{{- end -}}

{{/* Refuses what the schema cannot of the expert store's values. */}}
{{- define "premoe.expert-store.validate" -}}
{{- $store := .Values.expertStore -}}
{{- $cache := $store.cache -}}
{{- $own := or $cache.existingClaim $cache.hostPath -}}
{{- if and $cache.existingClaim $cache.hostPath -}}
{{- fail "expertStore.cache.existingClaim and expertStore.cache.hostPath exclude each other: the cache is one folder" -}}
{{- end -}}
{{- if and $own (eq $cache.medium "memory") -}}
{{- fail "expertStore.cache.medium is memory, and existingClaim or hostPath names a volume: choose one of them" -}}
{{- end -}}
{{- if $cache.hostPath -}}
{{- include "premoe.expert-store.validate.hostPath" (lookup "v1" "Namespace" "" .Release.Namespace) -}}
{{- end -}}
{{- $limit := dig "limits" "memory" "" $store.resources | include "premoe.bytes" | int64 -}}
{{- $memory := ternary (include "premoe.bytes" $cache.size | int64) (int64 0) (eq $cache.medium "memory") -}}
{{- $needed := add $memory (int64 $store.memoryBytes) 268435456 -}}
{{- if and (gt $limit (int64 0)) (lt $limit $needed) -}}
{{- fail (printf "expertStore.resources.limits.memory is %v: it must hold memoryBytes%s and 256Mi, %dMi together" $store.resources.limits.memory (ternary ", the cache in memory" "" (gt $memory (int64 0))) (div (add $needed 1048575) 1048576)) -}}
{{- end -}}
{{- end -}}

{{/* Takes the namespace of the release; empty: there is none to see. */}}
{{- define "premoe.expert-store.validate.hostPath" -}}
{{- $profile := dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "" (. | default dict) -}}
{{- if has $profile (list "restricted" "baseline") -}}
{{- fail (printf "expertStore.cache.hostPath is set, and namespace %s enforces the Pod Security profile %s, which refuses such pods: use expertStore.cache.existingClaim, or leave both empty" .metadata.name $profile) -}}
{{- end -}}
{{- end -}}
