{{/* Prefix of all names. */}}
{{- define "premoe.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of a cluster-wide object: releases of one name may lie in several namespaces. */}}
{{- define "premoe.clusterName" -}}
{{- printf "%s-%s" (include "premoe.fullname" .) .Release.Namespace | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select the pods of a component. Takes (root, component). */}}
{{- define "premoe.selectorLabels" -}}
app.kubernetes.io/name: premoe
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of a pod: nothing that changes with the chart's version, which would restart pods. Takes (root, component). */}}
{{- define "premoe.podLabels" -}}
{{ include "premoe.selectorLabels" . }}
app.kubernetes.io/part-of: premoe
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of an object. Takes (root, component). */}}
{{- define "premoe.labels" -}}
{{ include "premoe.selectorLabels" . }}
app.kubernetes.io/part-of: premoe
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Metadata of an object in the release's namespace. Takes (root, component, name, and optionally namespace, annotations, extraLabels). */}}
{{- define "premoe.metadata" -}}
name: {{ .name }}
namespace: {{ .namespace | default .root.Release.Namespace | quote }}
{{ include "premoe.metadataCommon" . }}
{{- end -}}

{{/* Metadata of an object beside name and namespace. Takes (root, component, and optionally annotations, extraLabels). */}}
{{- define "premoe.metadataCommon" -}}
labels:
  {{- include "premoe.labels" . | nindent 2 }}
  {{- with .extraLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Name of a component's objects. Takes (root, component). */}}
{{- define "premoe.componentName" -}}
{{ include "premoe.fullname" .root }}-{{ .component }}
{{- end -}}

{{- define "premoe.serviceAccountName" -}}
{{- .values.serviceAccount.name | default (ternary (include "premoe.componentName" .) "default" .values.serviceAccount.create) -}}
{{- end -}}

{{/* An image reference. Takes (root, image). */}}
{{- define "premoe.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry -}}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{ printf "%s@%s" $name .image.digest }}
{{- else -}}
{{ printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity such as 8Gi, 1.5Gi or 100000000; 0: none, or in a form that is not read. */}}
{{- define "premoe.bytes" -}}
{{- $text := ternary (printf "%v" .) (printf "%.0f" (float64 .)) (kindIs "string" .) -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if and $number (hasKey $units $unit) -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* DNS name of a Service of the release. Takes (root, component). */}}
{{- define "premoe.host" -}}
{{ include "premoe.componentName" . }}.{{ .root.Release.Namespace }}.svc
{{- end -}}

{{/* gRPC target of a headless Service of the release. Takes (root, component). */}}
{{- define "premoe.target" -}}
dns:///{{ include "premoe.host" . }}:50051
{{- end -}}

{{- define "premoe.qdrantUrl" -}}
{{- if .Values.qdrant.trial.enabled -}}
http://{{ include "premoe.host" (dict "root" . "component" "qdrant") }}:6333
{{- else -}}
{{ .Values.qdrant.url }}
{{- end -}}
{{- end -}}
