{{/* A pod that `helm test` runs. Takes (root, name, arguments). */}}
{{- define "premoe.test.pod" -}}
{{- $root := .root -}}
{{- $part := dict "root" .root "component" "test" -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "premoe.fullname" .root }}-test-{{ .name }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "premoe.podLabels" $part | nindent 4 }}
    {{- include "premoe.gateway.podLabels" .root | nindent 4 }}
  annotations:
    helm.sh/hook: test
    # A pod that failed stays, for reading; docs/uninstall.md says how to remove it.
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
    helm.sh/hook-output-log-policy: hook-succeeded,hook-failed
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  activeDeadlineSeconds: {{ mul 6 .root.Values.tests.timeoutSeconds }}
  {{- include "premoe.imagePullSecrets" .root | nindent 2 }}
  securityContext:
    {{- include "premoe.podSecurity" .root | nindent 4 }}
  {{- with .root.Values.expertStore.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.expertStore.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ include "premoe.image" (dict "root" .root "image" .root.Values.expertStore.image) | quote }}
      imagePullPolicy: {{ .root.Values.expertStore.image.pullPolicy }}
      command: {{ toJson .root.Values.tests.command }}
      args: {{ toJson .arguments }}
      env:
        {{- range $key, $value := include "premoe.tls.settings" (dict "root" .root "prefix" "PREMOE_SMOKE") | fromYaml }}
        - {name: {{ $key }}, value: {{ $value | quote }}}
        {{- end }}
        - {name: PREMOE_SMOKE_TIMEOUT_S, value: {{ .root.Values.tests.timeoutSeconds | quote }}}
        - {name: HOME, value: /tmp}
        {{- with .root.Values.expertStore.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        requests: {cpu: 50m, memory: 128Mi}
        limits: {memory: 512Mi}
      securityContext:
        {{- include "premoe.containerSecurity" .root | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if ne .root.Values.tls.mode "Disabled" }}
        - {name: tls, mountPath: /etc/premoe/tls, readOnly: true}
        {{- end }}
        {{- with .root.Values.expertStore.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: {{ .root.Values.tmpSize | quote }}}
    {{- if ne .root.Values.tls.mode "Disabled" }}
    - name: tls
      secret: {secretName: {{ include "premoe.tls.secretName" $part | quote }}}
    {{- end }}
    {{- with .root.Values.expertStore.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
