{{- /* A Service's name begins with a letter and has no dots; a release's may with a digit, and have some. */}}
{{- define "iafvae.name" -}}
{{- $release := .Release.Name | replace "." "-" }}
{{- if regexMatch "^[0-9]" $release }}{{ .Chart.Name }}-{{ $release }}
{{- else if contains .Chart.Name $release }}{{ $release }}
{{- else }}{{ $release }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "iafvae.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "iafvae.test" -}}
app.kubernetes.io/component: test
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "iafvae.meta" -}}
name: {{ include "iafvae.name" . | quote }}
namespace: {{ .Release.Namespace | quote }}
{{ include "iafvae.labels" . }}
{{- end }}

{{- define "iafvae.labels" -}}
labels:
  {{- include "iafvae.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "iafvae.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default (printf "v%s-%s" $.Chart.AppVersion $.Values.provider) }}{{ end }}
{{- end -}}
{{- end }}

{{- define "iafvae.keys" -}}
{{- if .Values.keys.existingSecret }}{{ .Values.keys.existingSecret }}{{ else if .Values.keys.create }}{{ include "iafvae.name" . }}-keys{{ end -}}
{{- end }}

{{- define "iafvae.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "iafvae.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # no variables for other Services: some would look like settings
securityContext:
  runAsNonRoot: true
  {{- range $name, $number := .Values.user }}
  {{ $name }}: {{ int64 $number }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end }}
