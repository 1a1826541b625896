{{/* Alert rules. `$labels` in backquotes is Prometheus' own template. */}}
{{- define "premoe.alerts" -}}
{{- $job := printf "job=%q,namespace=%q" (include "premoe.componentName" (dict "root" . "component" "operator")) .Release.Namespace -}}
{{- /* Reasons that pass by themselves. */ -}}
{{- $waits := "Packing|Profiling|BuildingPatterns|WaitingForArtifacts|Issuing|Loading|RollingOut|WaitingForDeletion" -}}
{{- $docs := .Values.metrics.prometheusRule.docsUrl | trimSuffix "/" -}}
groups:
  - name: {{ include "premoe.componentName" (dict "root" . "component" "operator") }}
    rules:
      - alert: PremoeModelNotReady
        expr: >-
          sum by (reason) (premoe_operator_models{ {{- $job -}} ,reason!~"AllReady|Suspended|ScaledToZero|{{ $waits }}"}) > 0
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: '{{ `{{ $value }}` }} PrunedModels are not Ready: {{ `{{ $labels.reason }}` }}'
          runbook_url: '{{ $docs }}/troubleshooting.md#{{ `{{ $labels.reason | toLower }}` }}'
      - alert: PremoeModelPreparationTakesLong
        expr: >-
          sum by (reason) (premoe_operator_models{ {{- $job -}} ,reason=~"{{ $waits }}"}) > 0
        for: 12h
        labels: {severity: warning}
        annotations:
          summary: '{{ `{{ $value }}` }} PrunedModels have been at {{ `{{ $labels.reason }}` }} for 12 hours'
          runbook_url: '{{ $docs }}/troubleshooting.md#{{ `{{ $labels.reason | toLower }}` }}'
      - alert: PremoeOperatorWithoutLeader
        expr: (sum(premoe_operator_leader{ {{- $job -}} }) or vector(0)) < 1
        for: 2m
        labels: {severity: critical}
        annotations:
          summary: No operator acts. Workers go on serving, but changes of PrunedModels have no effect.
          runbook_url: '{{ $docs }}/operate.md#premoeoperatorwithoutleader'
      - alert: PremoeOperatorWatchStale
        expr: max by (watch) (premoe_operator_watch_age_seconds{ {{- $job -}} }) > 300
        for: 5m
        labels: {severity: warning}
        annotations:
          summary: The operator has heard nothing of {{ `{{ $labels.watch }}` }} for 5 minutes
          runbook_url: '{{ $docs }}/operate.md#premoeoperatorwatchstale'
      {{- if eq .Values.tls.mode "CertManager" }}
      - alert: PremoeCertificateExpires
        expr: >-
          certmanager_certificate_expiration_timestamp_seconds{exported_namespace="{{ .Release.Namespace }}",
          name=~"{{ include "premoe.fullname" . }}-(operator|retrieval|expert-store|gateway)"} - time() < 7 * 86400
        for: 1h
        labels: {severity: critical}
        annotations:
          summary: Certificate {{ `{{ $labels.name }}` }} ends within 7 days and has not been renewed
          runbook_url: '{{ $docs }}/troubleshooting.md#certificatenotissued'
      {{- end }}
{{- end -}}
