{{/* Alert rules on the operator. `$labels` in backquotes is Prometheus' own template. */}}
{{- define "premoe.operatorAlerts" -}}
{{- $job := printf "job=%q,namespace=%q" (include "premoe.componentName" (dict "root" . "component" "operator")) .Release.Namespace -}}
{{- /* Reasons that pass by themselves. */ -}}
{{- $waits := "Packing|Profiling|BuildingPatterns|WaitingForArtifacts|Issuing|Loading|RollingOut|WaitingForDeletion" -}}
{{- $docs := .Values.metrics.prometheusRule.docsUrl | trimSuffix "/" -}}
- name: {{ include "premoe.componentName" (dict "root" . "component" "operator") }}
  rules:
    - alert: PremoeModelNotReady
      expr: >-
        sum by (reason) (premoe_operator_models{ {{- $job -}} ,reason!~"AllReady|Suspended|ScaledToZero|HandedOver|{{ $waits }}"}) > 0
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
        (certmanager_certificate_expiration_timestamp_seconds{exported_namespace="{{ .Release.Namespace }}",
        name=~"{{ include "premoe.fullname" . }}-(operator|retrieval|expert-store|gateway|test)"}
        or certmanager_certificate_expiration_timestamp_seconds{name=~".+-worker"
        {{- with .Values.watchNamespaces }},exported_namespace=~"{{ join "|" . }}"{{ end }}}) - time() < 7 * 86400
      for: 1h
      labels: {severity: critical}
      annotations:
        summary: Certificate {{ `{{ $labels.exported_namespace }}/{{ $labels.name }}` }} ends within 7 days and has not been renewed
        runbook_url: '{{ $docs }}/troubleshooting.md#certificatenotissued'
    {{- end }}
{{- end -}}

{{/* Alert rules on workers, gateway, retrieval and expert store. Workers may be in any namespace. */}}
{{- define "premoe.servingAlerts" -}}
{{- $own := printf "namespace=%q" .Release.Namespace -}}
{{- $docs := .Values.metrics.prometheusRule.docsUrl | trimSuffix "/" -}}
- name: {{ include "premoe.fullname" . }}-serving
  rules:
    - alert: PremoeQueueGrows
      expr: >-
        avg by (namespace, model_name) (premoe:num_requests_waiting) > 8
      for: 10m
      labels: {severity: warning}
      annotations:
        summary: 'More than 8 requests wait before each worker of {{ `{{ $labels.model_name }}` }}'
        runbook_url: '{{ $docs }}/operate.md#premoequeuegrows'
    - alert: PremoeFirstTokenLate
      expr: >-
        histogram_quantile(0.95, sum by (le, namespace, model_name) (rate(premoe:time_to_first_token_seconds_bucket[5m]))) > 10
      for: 10m
      labels: {severity: warning}
      annotations:
        summary: '1 of 20 requests to {{ `{{ $labels.model_name }}` }} waits more than 10 s for its first token'
        runbook_url: '{{ $docs }}/operate.md#premoefirsttokenlate'
    - alert: PremoeRequestsFail
      expr: >-
        sum(rate(premoe:gateway_requests_total{ {{- $own -}} ,path=~"/v1/.*",code=~"5.."}[5m])) / sum(rate(premoe:gateway_requests_total{ {{- $own -}} ,path=~"/v1/.*"}[5m])) > 0.05
      for: 5m
      labels: {severity: critical}
      annotations:
        summary: '{{ `{{ $value | humanizePercentage }}` }} of the requests end in a 5xx'
        runbook_url: '{{ $docs }}/operate.md#premoerequestsfail'
    - alert: PremoeNoWorker
      expr: >-
        max(premoe:gateway_worker_up{ {{- $own -}} }) == 0
      for: 2m
      labels: {severity: critical}
      annotations:
        summary: 'The gateway knows workers, and none of them answers'
        runbook_url: '{{ $docs }}/operate.md#premoenoworker'
    - alert: PremoeSwapsFail
      expr: >-
        sum by (namespace, model_name) (increase(premoe:failed_swaps_total[15m])) > 0
      for: 15m
      labels: {severity: warning}
      annotations:
        summary: 'Experts of {{ `{{ $labels.model_name }}` }} could not be swapped in'
        runbook_url: '{{ $docs }}/operate.md#premoeswapsfail'
    - alert: PremoeRetainedMassLow
      expr: >-
        sum by (namespace, model_name, task) (rate(premoe:retained_routing_mass_sum[30m])) / sum by (namespace, model_name, task) (rate(premoe:retained_routing_mass_count[30m])) < 0.5
      for: 30m
      labels: {severity: warning}
      annotations:
        summary: 'Task {{ `{{ $labels.task }}` }} of {{ `{{ $labels.model_name }}` }} keeps {{ `{{ $value | humanizePercentage }}` }} of the mass of the router'
        runbook_url: '{{ $docs }}/operate.md#premoeretainedmasslow'
    - alert: PremoeTasksUnknown
      expr: >-
        sum(rate(premoe:decisions_total{ {{- $own -}} ,decision!="specialist"}[1h])) / sum(rate(premoe:decisions_total{ {{- $own -}} }[1h])) > 0.5
      for: 1h
      labels: {severity: warning}
      annotations:
        summary: '{{ `{{ $value | humanizePercentage }}` }} of the prompts belong to no stored task'
        runbook_url: '{{ $docs }}/operate.md#premoetasksunknown'
    - alert: PremoeDataCorrupt
      expr: >-
        sum(increase(premoe:store_errors_total{ {{- $own -}} ,kind="CorruptData"}[15m])) > 0
      for: 0m
      labels: {severity: critical}
      annotations:
        summary: 'Bytes in object storage do not match their digests'
        runbook_url: '{{ $docs }}/operate.md#premoedatacorrupt'
    - alert: PremoeCacheSkipped
      expr: >-
        max(min_over_time(premoe:store_cache_skipped{ {{- $own -}} }[10m])) == 1
      for: 5m
      labels: {severity: warning}
      annotations:
        summary: 'An expert store has not reached Redis for 10 minutes; what its own cache lacks comes from object storage'
        runbook_url: '{{ $docs }}/operate.md#premoecacheskipped'
    - alert: PremoeWrongCopy
      expr: >-
        sum by (namespace, tier) (increase(premoe:store_wrong_copies_total{ {{- $own -}} }[15m]) or increase(premoe:fetch_wrong_copies_total[15m])) > 0
      for: 0m
      labels: {severity: warning}
      annotations:
        summary: 'Copies of experts in the tier {{ `{{ $labels.tier }}` }} were wrong, and were read again from elsewhere'
        runbook_url: '{{ $docs }}/operate.md#premoewrongcopy'
    - alert: PremoeSourcesRest
      expr: >-
        max by (namespace, model_name, scheme) (avg_over_time(premoe:fetch_sources_resting[10m])) > 0.5
      for: 5m
      labels: {severity: warning}
      annotations:
        summary: 'Workers of {{ `{{ $labels.model_name }}` }} have got no experts by {{ `{{ $labels.scheme }}` }} from some server for 10 minutes'
        runbook_url: '{{ $docs }}/operate.md#premoesourcesrest'
    - alert: PremoeStoreBypassed
      expr: >-
        sum by (namespace, model_name) (rate(premoe:fetched_bytes_total{scheme="object"}[5m])) > 0
      for: 10m
      labels: {severity: warning}
      annotations:
        summary: 'Workers of {{ `{{ $labels.model_name }}` }} read experts out of object storage themselves: no expert store answers them'
        runbook_url: '{{ $docs }}/operate.md#premoestorebypassed'
    - alert: PremoeNodeCacheSmall
      expr: >-
        min by (pod) (premoe:store_node_age_seconds{ {{- $own -}} }) < 600 and sum by (pod) (rate(premoe:store_node_evicted_total{ {{- $own -}} }[30m])) > 0
      for: 30m
      labels: {severity: warning}
      annotations:
        summary: 'The cache of {{ `{{ $labels.pod }}` }} drops experts that were used within the last 10 minutes'
        runbook_url: '{{ $docs }}/operate.md#premoenodecachesmall'
{{- end -}}
