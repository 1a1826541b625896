{{/* Selects the pods of this chart, and never a worker: a PrunedModel may have the name of the release. */}}
{{- define "premoe.network.ownPods" -}}
matchLabels:
  app.kubernetes.io/name: premoe
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [operator, retrieval, expert-store, gateway, qdrant, test]
{{- end -}}

{{/* Peers: pods of components of the release. Takes (root, components). */}}
{{- define "premoe.network.component" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/name: premoe
      app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
    matchExpressions:
      - key: app.kubernetes.io/component
        operator: In
        values: {{ toJson .components }}
{{- end -}}

{{/* Peers: workers of other releases, and with `operator` their operators. Takes (root, operator). */}}
{{- define "premoe.network.guests" -}}
{{- range .root.Values.guests }}
{{- if $.operator }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .namespace }}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: premoe
      app.kubernetes.io/instance: {{ .release | quote }}
      app.kubernetes.io/component: operator
{{- end }}
{{ include "premoe.network.workers" .workerNamespaces }}
{{- end }}
{{- end -}}

{{/* Peers: workers in the named namespaces; without any: in all. */}}
{{- define "premoe.network.workers" -}}
- namespaceSelector:
    {{- if . }}
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values: {{ toJson . }}
    {{- else }} {}
    {{- end }}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: premoe
      app.kubernetes.io/part-of: premoe
      app.kubernetes.io/component: worker
{{- end -}}
