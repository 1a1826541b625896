{{/* Refuses in one line what the schema cannot: values that do not fit together. */}}
{{- define "premoe.validate" -}}
{{- $v := .Values -}}
{{- if not $v.objectStore.url -}}
{{- fail "objectStore.url is empty: name the object store, for example s3://bucket/prefix" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "CertManager") (not $v.tls.issuerRef.name) -}}
{{- fail "tls.mode is CertManager and tls.issuerRef.name is empty: name a cert-manager issuer, or set tls.mode to Secret with tls.secretName, or to Disabled for plain text" -}}
{{- end -}}
{{- if and (eq $v.tls.mode "Secret") (not $v.tls.secretName) -}}
{{- fail "tls.mode is Secret and tls.secretName is empty: name a Secret with tls.crt, tls.key and ca.crt, or set tls.mode to Disabled for plain text" -}}
{{- end -}}
{{- if ge (regexFind "^[0-9]+" $v.tls.renewBefore | int) (regexFind "^[0-9]+" $v.tls.duration | int) -}}
{{- fail (printf "tls.renewBefore is %s: it must be less than tls.duration (%s), in whole hours" $v.tls.renewBefore $v.tls.duration) -}}
{{- end -}}
{{- if and $v.qdrant.url $v.qdrant.trial.enabled -}}
{{- fail "qdrant.url and qdrant.trial.enabled exclude each other: choose your own server or the trial one" -}}
{{- end -}}
{{- if and (gt (int $v.retrieval.replicas) 1) (eq $v.retrieval.index "qdrant") (not (include "premoe.qdrantUrl" .)) -}}
{{- fail (printf "retrieval.replicas is %d, but the embedded Qdrant allows one: set qdrant.url, or qdrant.trial.enabled" (int $v.retrieval.replicas)) -}}
{{- end -}}
{{- if and $v.metrics.podMonitor.enabled (not $v.metrics.enabled) -}}
{{- fail "metrics.podMonitor.enabled is true and metrics.enabled is false: there would be no port to scrape" -}}
{{- end -}}
{{- if and $v.gateway.ingress.enabled (not $v.gateway.ingress.hosts) -}}
{{- fail "gateway.ingress.enabled is true and gateway.ingress.hosts is empty: name the host under which clients call" -}}
{{- end -}}
{{- if and $v.gateway.httpRoute.enabled (not $v.gateway.httpRoute.parentRefs) -}}
{{- fail "gateway.httpRoute.enabled is true and gateway.httpRoute.parentRefs is empty: name the Gateway that it belongs to" -}}
{{- end -}}
{{- if hasPrefix "memory://" $v.objectStore.url -}}
{{- fail "objectStore.url is memory://: processes of several pods do not share memory; use s3:// or file:// on a shared volume" -}}
{{- end -}}
{{- include "premoe.expert-store.validate" . -}}
{{- $drain := add $v.drain.delaySeconds $v.drain.graceSeconds -}}
{{- range $name := list "operator" "retrieval" "expertStore" "gateway" -}}
{{- $seconds := int (index $v $name).terminationGracePeriodSeconds -}}
{{- if le $seconds (int $drain) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d: it must be more than drain.delaySeconds and drain.graceSeconds together (%d)" $name $seconds (int $drain)) -}}
{{- end -}}
{{- end -}}
{{- if and .Release.IsUpgrade (eq $v.tls.mode "CertManager") $v.tls.checkRoles -}}
{{- $name := include "premoe.componentName" (dict "root" . "component" "gateway") -}}
{{- include "premoe.validate.roles" (lookup "cert-manager.io/v1" "Certificate" .Release.Namespace $name) -}}
{{- end -}}
{{- with include "premoe.definition.schema" . -}}
{{- $needed := index $.Chart.Annotations "premoe.dev/schema" -}}
{{- if lt (int .) (int $needed) -}}
{{- fail (printf "the definition of PrunedModel in this cluster has schema %s and this chart needs %s: upgrade the release of premoe-crds first" . $needed) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses to check roles at once where the Certificate from before the upgrade holds none; empty: there is none to see. */}}
{{- define "premoe.validate.roles" -}}
{{- if and . (not (dig "spec" "uris" list .)) -}}
{{- fail (printf "tls.checkRoles is true and Certificate %s holds no role yet, so services would refuse each other: upgrade with tls.checkRoles set to false first, and again without it once all Certificates are renewed" .metadata.name) -}}
{{- end -}}
{{- end -}}

{{/* Schema of the installed definition; empty where there is none, or where there is no cluster to ask. */}}
{{- define "premoe.definition.schema" -}}
{{- if .Values.checkDefinition -}}
{{- with lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "prunedmodels.premoe.dev" -}}
{{- dig "annotations" "premoe.dev/schema" "0" .metadata -}}
{{- end -}}
{{- end -}}
{{- end -}}
