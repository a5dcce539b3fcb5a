{{- define "taciturn.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "taciturn.labels" -}}
app.kubernetes.io/name: taciturn
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "taciturn.selector" -}}
app.kubernetes.io/name: taciturn
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "taciturn.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "taciturn.name" .) -}}
{{- end -}}

{{- define "taciturn.workerServiceAccount" -}}
{{- .Values.worker.serviceAccount.name | default (printf "%s-worker" (include "taciturn.name" .)) -}}
{{- end -}}

{{/* A value that --set makes a number or a boolean of, as it was written: numbers of a file are floats. */}}
{{- define "taciturn.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{- define "taciturn.image" -}}
{{ .Values.image.repository }}:{{ include "taciturn.text" .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "taciturn.workerImage" -}}
{{ .Values.worker.image.repository }}:{{ include "taciturn.text" .Values.worker.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* An entry of networkPolicy.workerEgress: a CIDR, or one with ports. */}}
{{- define "taciturn.egress" -}}
{{- if kindIs "string" . }}{{ dict "cidr" . | toYaml }}{{ else }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "taciturn.internalUrl" -}}
http://{{ include "taciturn.name" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}

{{- define "taciturn.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "taciturn.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "taciturn.environment" -}}
- name: TACITURN_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "database.existingSecret: name the Secret with the database's url" .Values.database.existingSecret }}
      key: url
- name: TACITURN_LEDGER_KEY
  valueFrom:
    secretKeyRef:
      name: {{ required "ledger.existingSecret: name the Secret with the ledger's key" .Values.ledger.existingSecret }}
      key: key
{{- if .Values.oidc.existingSecret }}
- name: TACITURN_OIDC_CLIENT_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ .Values.oidc.existingSecret }}
      key: client-secret
{{- end }}
{{- if .Values.smtp.existingSecret }}
- name: TACITURN_SMTP_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .Values.smtp.existingSecret }}
      key: password
{{- end }}
{{- if .Values.metrics.existingSecret }}
- name: TACITURN_METRICS_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.metrics.existingSecret }}
      key: token
{{- end }}
{{- end -}}

{{- define "taciturn.environmentFrom" -}}
- configMapRef:
    name: {{ include "taciturn.name" . }}
{{- with .Values.storage.existingSecret }}
- secretRef:
    name: {{ . }}
{{- end }}
{{- end -}}

{{- define "taciturn.resources" -}}
{{- $count := int .Values.processes -}}
{{- $requests := dict "memory" (printf "%dMi" (add 128 (mul 192 $count))) -}}
{{- $limits := dict "memory" (printf "%dMi" (add 256 (mul 384 $count))) -}}
{{- $default := dict "requests" $requests "limits" $limits -}}
{{- toYaml (mergeOverwrite $default (deepCopy .Values.resources)) -}}
{{- end -}}
