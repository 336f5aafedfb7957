{{- /*
Gives a section that is null its defaults, which Helm takes away: one that holds nothing but comments is null. They come from a copy
of values.yaml, which templates cannot read. What is open, such as resources, may still lose a part of it by null.
*/}}
{{- define "finetune-operator.values" -}}
{{- include "finetune-operator.restore" (list .Values (.Files.Get "files/values.yaml" | fromYaml)) -}}
{{- end }}

{{- define "finetune-operator.restore" -}}
{{- $values := index . 0 -}}
{{- range $name, $default := index . 1 -}}
{{- if kindIs "invalid" (index $values $name) -}}
{{- $_ := set $values $name $default -}}
{{- else if and (kindIs "map" $default) (not (has $name (list "config" "labels" "podSecurityContext" "resources"))) -}}
{{- include "finetune-operator.restore" (list (index $values $name) $default) -}}
{{- end -}}
{{- end -}}
{{- end }}
