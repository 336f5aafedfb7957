{{- define "finetune-operator.name" -}}
{{- $name := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) | replace "." "-" -}}
{{- /* That of a Service: no dots, and a letter first. */}}
{{- regexMatch "^[0-9]" $name | ternary (printf "release-%s" $name) $name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.name" .) -}}
{{- else -}}
{{- required "serviceAccount.name: name the service account to use, or set serviceAccount.create" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ include "finetune-operator.labelValue" .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | include "finetune-operator.labelValue" | quote }}
{{- end }}

{{- /* A text as the value of a label: at most 63 characters, with a letter or digit at both ends. */}}
{{- define "finetune-operator.labelValue" -}}
{{- $legal := regexReplaceAll "[^-A-Za-z0-9_.]+" . "_" | trunc 63 -}}
{{- regexReplaceAll "^[-_.]+|[-_.]+$" $legal "" -}}
{{- end }}

{{- /* An image by its values and the chart: (list .Values.image .) */}}
{{- define "finetune-operator.image" -}}
{{- $image := index . 0 -}}
{{- $version := (index . 1).Chart.AppVersion -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else if $image.tag -}}
{{- printf "%s:%s" $image.repository $image.tag -}}
{{- else if hasPrefix "sha256:" $version -}}
{{- printf "%s@%s" $image.repository $version -}}
{{- else -}}
{{- /* A tag has no `+`. */ -}}
{{- printf "%s:%s" $image.repository ($version | replace "+" "_") -}}
{{- end -}}
{{- end }}

{{- define "finetune-operator.testNamespace" -}}
{{- .Values.test.namespace | default (first (append .Values.watchNamespaces .Release.Namespace)) -}}
{{- end }}

{{- define "finetune-operator.testStorage" -}}
{{- .Values.test.storage | default .Values.config.storage | default (printf "pvc://%s-test/runs" (include "finetune-operator.name" .)) -}}
{{- end }}

{{- /* Fit for the Pod Security level `restricted`. */}}
{{- define "finetune-operator.podSecurityContext" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- range $field, $value := .Values.podSecurityContext }}
{{- if not (kindIs "invalid" $value) }}
{{ dict $field $value | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{- define "finetune-operator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
