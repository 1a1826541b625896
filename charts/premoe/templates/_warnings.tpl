{{/* What the person who installs should know, one YAML string each. */}}
{{- define "premoe.warnings" -}}
{{- if and .Values.checkDefinition (not (include "premoe.definition.schema" .)) }}
- The definition of PrunedModel is not in this cluster. Install the chart premoe-crds, or the operator waits for it.
{{- end }}
{{- if not .Values.operator.enabled }}
- operator.enabled is false. Nobody looks after PrunedModels; what runs goes on.
{{- end }}
{{- if eq .Values.tls.mode "Disabled" }}
- tls.mode is Disabled. Everybody who reaches a pod can call it and read what it sends.
{{- end }}
{{- if and (eq .Values.tls.mode "Secret") .Values.tls.checkRoles }}
- tls.checkRoles is true. Certificates that hold no URI premoe://{{ include "premoe.tls.release" . }}/ROLE are refused, so put them into tls.secretName before you upgrade, or set tls.checkRoles to false.
{{- end }}
{{- if not .Values.networkPolicy.enabled }}
- networkPolicy.enabled is false. Every pod of the cluster can reach the services.
{{- end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.ingress.gateway) (not .Values.gateway.keys.existingSecret) }}
- networkPolicy.ingress.gateway and gateway.keys.existingSecret are empty. Everybody who reaches the gateway may use the models.
{{- end }}
{{- if and (or .Values.gateway.ingress.enabled .Values.gateway.httpRoute.enabled) (not .Values.gateway.keys.existingSecret) }}
- The gateway can be reached from outside of the cluster, and gateway.keys.existingSecret is empty. It asks for no key.
{{- end }}
{{- if and .Values.gateway.httpRoute.enabled .Values.gateway.tls.existingSecret }}
- gateway.httpRoute leads to a port that speaks HTTPS (gateway.tls.existingSecret). Add a BackendTLSPolicy for the Service {{ include "premoe.fullname" . }}-gateway, or the Gateway calls it in plain HTTP.
{{- end }}
{{- if .Values.qdrant.trial.enabled }}
- qdrant.trial is one pod without an API key. Use qdrant.url for more than a trial.
{{- end }}
{{- if hasPrefix "file://" .Values.objectStore.url }}
- objectStore.url is a folder. It must be one shared volume in retrieval, expert store and Jobs.
{{- end }}
{{- if and (hasPrefix "s3://" .Values.objectStore.url) (not .Values.objectStore.existingSecret) }}
- objectStore.existingSecret is empty. Pods need credentials of another kind, such as a cloud role on their ServiceAccounts.
{{- end }}
{{- with .Values.expertStore }}
{{- if and .http.enabled (not .http.urlKey.existingSecret) (or (kindIs "invalid" .replicas) (gt (int .replicas) 1)) }}
- expertStore.http.urlKey.existingSecret is empty. Each replica of the expert store signs addresses with a key of its own, so it names only itself{{ if not $.Values.redis.existingSecret }}, and each reads every blob from object storage{{ end }}.
{{- end }}
{{- if and .http.enabled .http.plain (ne $.Values.tls.mode "Disabled") }}
- expertStore.http.plain is true. Workers check every byte of blobs, but who can read along on the network can read the weights.
{{- end }}
{{- if .cache.hostPath }}
- expertStore.cache.hostPath is set. The folder must be on every node that may run the expert store, and writable for its user; namespaces that enforce the Pod Security profile restricted or baseline refuse the pods.
{{- end }}
{{- end }}
{{- with .Values.worker.objectStore }}
{{- if and .read .existingSecret (eq .existingSecret $.Values.objectStore.existingSecret) }}
- worker.objectStore.existingSecret names the Secret that Jobs write packs with. Workers need one that may only read.
{{- end }}
{{- end }}
{{- if .Values.podTemplate.allowedPaths }}
- podTemplate.allowedPaths is set. Who may write PrunedModels can change {{ join ", " .Values.podTemplate.allowedPaths }} of worker pods.
{{- end }}
{{- $local := list }}
{{- range $image := list .Values.operator.image .Values.retrieval.image .Values.expertStore.image .Values.gateway.image .Values.worker.image }}
{{- if not (or $image.registry $.Values.global.imageRegistry) }}
{{- $local = append $local (include "premoe.image" (dict "root" $ "image" $image)) }}
{{- end }}
{{- end }}
{{- with $local }}
- PreMoE's images are in no public registry. Build and push them, and set global.imageRegistry; without a registry are {{ join ", " . }}
{{- end }}
{{- end -}}
