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

{{/* Peers: pods of PrunedModels in the namespaces that the release serves. Takes (root, components). */}}
{{- define "premoe.network.models" -}}
- namespaceSelector:
    {{- if .root.Values.watchNamespaces }}
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values: {{ toJson .root.Values.watchNamespaces }}
    {{- else }} {}
    {{- end }}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: premoe
      app.kubernetes.io/part-of: premoe
    matchExpressions:
      - key: app.kubernetes.io/component
        operator: In
        values: {{ toJson .components }}
{{- end -}}
