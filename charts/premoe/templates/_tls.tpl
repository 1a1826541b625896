{{- define "premoe.tls.serverName" -}}
{{- .Values.tls.serverName | default (printf "%s.%s.svc" (include "premoe.fullname" .) .Release.Namespace) -}}
{{- end -}}

{{/* Name of the release in the URIs premoe://RELEASE/ROLE of certificates. */}}
{{- define "premoe.tls.release" -}}
{{ .Release.Name }}.{{ .Release.Namespace }}
{{- end -}}

{{/* Secret with a component's certificate. Takes (root, component). */}}
{{- define "premoe.tls.secretName" -}}
{{- if eq .root.Values.tls.mode "Secret" -}}
{{ .root.Values.tls.secretName }}
{{- else -}}
{{ include "premoe.componentName" . }}-tls
{{- end -}}
{{- end -}}

{{/* TLS settings of a process. Takes (root, prefix). */}}
{{- define "premoe.tls.settings" -}}
{{- if ne .root.Values.tls.mode "Disabled" }}
{{ .prefix }}_TLS_CERT: /etc/premoe/tls/tls.crt
{{ .prefix }}_TLS_KEY: /etc/premoe/tls/tls.key
{{ .prefix }}_TLS_CA: /etc/premoe/tls/ca.crt
{{ .prefix }}_TLS_SERVER_NAME: {{ include "premoe.tls.serverName" .root | quote }}
{{- end }}
{{- end -}}

{{/* Which callers a server admits. Takes (root, prefix). */}}
{{- define "premoe.tls.admission" -}}
{{- if and (ne .root.Values.tls.mode "Disabled") .root.Values.tls.checkRoles }}
{{ .prefix }}_TLS_RELEASE: {{ include "premoe.tls.release" .root }}
{{- end }}
{{- end -}}

{{/* Releases whose workers and operator a server admits beside those of its own. Takes (root, prefix). */}}
{{- define "premoe.tls.guests" -}}
{{- if and .root.Values.guests (include "premoe.tls.admission" .) }}
{{- $names := list }}
{{- range .root.Values.guests }}
{{- $names = append $names (printf "%s.%s" .release .namespace) }}
{{- end }}
{{ .prefix }}_TLS_GUESTS: {{ join "," $names }}
{{- end }}
{{- end -}}

{{/* The Certificate of a component. Takes (root, component). */}}
{{- define "premoe.tls.certificate" -}}
{{- if eq .root.Values.tls.mode "CertManager" -}}
{{- $name := include "premoe.componentName" . -}}
{{- $namespace := .root.Release.Namespace -}}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  {{- include "premoe.metadata" (merge (dict "name" $name) .) | nindent 2 }}
spec:
  secretName: {{ include "premoe.tls.secretName" . }}
  secretTemplate:
    labels:
      {{- include "premoe.selectorLabels" . | nindent 6 }}
  commonName: {{ $name | trunc 63 | trimSuffix "-" }}
  dnsNames:
    - {{ include "premoe.tls.serverName" .root }}
    - {{ $name }}.{{ $namespace }}.svc
    - {{ $name }}.{{ $namespace }}.svc.{{ .root.Values.clusterDomain }}
  uris:
    - premoe://{{ include "premoe.tls.release" .root }}/{{ .component }}
  duration: {{ .root.Values.tls.duration }}
  renewBefore: {{ .root.Values.tls.renewBefore }}
  usages: [digital signature, server auth, client auth]
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  issuerRef:
    {{- toYaml .root.Values.tls.issuerRef | nindent 4 }}
{{- end }}
{{- end -}}
