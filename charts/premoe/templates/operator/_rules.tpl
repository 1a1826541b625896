{{/* What the operator may do where PrunedModels are. It has no verb on Secrets. */}}
{{- define "premoe.operator.rules" -}}
{{- $child := "[get, list, watch, create, patch, delete]" -}}
- apiGroups: [premoe.dev]
  resources: [prunedmodels]
  verbs: [get, list, watch]
- apiGroups: [premoe.dev]
  resources: [prunedmodels/status]
  verbs: [patch]
# Owner references that block deletion need it.
- apiGroups: [premoe.dev]
  resources: [prunedmodels/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [services, serviceaccounts, configmaps]
  verbs: {{ $child }}
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: {{ $child }}
- apiGroups: [batch]
  resources: [jobs]
  verbs: {{ $child }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: {{ $child }}
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: {{ $child }}
{{- if eq .Values.tls.mode "CertManager" }}
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: {{ $child }}
{{- end }}
# Which release serves the namespace. Its owners are the PrunedModels, and only who may delete it may set them. Making one
# cannot be limited to a name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [premoe-release]
  verbs: [get, update, delete]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
# Why a model is not healthy: its pods, and Events about missing Secrets and room.
- apiGroups: [""]
  resources: [pods, events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}
