{{- define "parbake.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains "parbake" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-parbake" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Cluster-wide objects carry the namespace, so that two releases of one name don't meet. */ -}}
{{- define "parbake.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "parbake.fullname" .) -}}
{{- end -}}

{{- define "parbake.webhookName" -}}
{{- printf "%s.%s.parbake.dev" (include "parbake.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "parbake.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else -}}
{{- include "parbake.fullname" . -}}
{{- end -}}
{{- end -}}

{{- define "parbake.selectorLabels" -}}
app.kubernetes.io/name: parbake
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: coordinator
{{- end -}}

{{- define "parbake.labels" -}}
{{ include "parbake.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "parbake.image" -}}
{{- $repository := required "image.repository is required: an image with parbake-coordinator on its PATH (deploy/README.md)" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The labels that the webhook is asked about, the default first. A selector can't say "one of these keys", so each
     is a webhook of its own; a selector that replaces theirs makes one of them all. */ -}}
{{- define "parbake.guardedLabels" -}}
{{- $labels := list .Values.gate.drainLabel -}}
{{- if not .Values.webhook.objectSelector -}}
{{- range .Values.pools -}}
{{- if and (eq (default "None" .mode) "Guard") .drainLabel -}}
{{- $labels = append $labels .drainLabel -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $labels | uniq | toJson -}}
{{- end -}}

{{- /* DNS names for the API's certificate. The API server asks the webhook as NAME.NAMESPACE.svc. */ -}}
{{- define "parbake.serviceNames" -}}
{{- $names := list -}}
{{- $services := list (include "parbake.fullname" .) (printf "%s-webhook" (include "parbake.fullname" .)) -}}
{{- range $service := $services -}}
{{- $names = concat $names (list (printf "%s.%s.svc" $service $.Release.Namespace) (printf "%s.%s.svc.cluster.local" $service $.Release.Namespace)) -}}
{{- end -}}
{{- join "," (concat $names .Values.service.names) -}}
{{- end -}}

{{- /* What can't work together, said before anything is applied. */ -}}
{{- define "parbake.check" -}}
{{- if and (ne .Values.gate.default "none") (not (has .Values.gate.default .Values.gate.modes)) -}}
{{- fail (printf "gate.default is %s, but gate.modes doesn't have it: the coordinator would lack the rights" .Values.gate.default) -}}
{{- end -}}
{{- $elsewhere := or (ne (int .Values.service.port) 7470) (eq .Values.service.type "NodePort") .Values.service.split -}}
{{- if and $elsewhere (not .Values.fleet.advertise) -}}
{{- fail "fleet.advertise is needed: with this service, QUIC isn't at port 7470 of the address where hosts enrol" -}}
{{- end -}}
{{- range .Values.pools -}}
{{- $mode := default "None" .mode -}}
{{- if ne $mode "None" -}}
{{- if not (has (lower $mode) $.Values.gate.modes) -}}
{{- fail (printf "pool %s has mode %s, but gate.modes doesn't have %s: the coordinator would lack the rights" .name $mode (lower $mode)) -}}
{{- end -}}
{{- if not (and (hasKey . "replicas") .podSelector) -}}
{{- fail (printf "pool %s has mode %s, which needs replicas and podSelector" .name $mode) -}}
{{- end -}}
{{- end -}}
{{- $namespace := default $.Release.Namespace .namespace -}}
{{- if and $.Values.watchNamespaces (not (has $namespace $.Values.watchNamespaces)) -}}
{{- fail (printf "pool %s is in namespace %s, which watchNamespaces doesn't have" .name $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The part of the fleet file that changes live. JSON strings are TOML strings. */ -}}
{{- define "parbake.fleetHosts" -}}
{{- range .Values.fleet.hosts }}
[[hosts]]
id = {{ .id | toJson }}
{{- with .zone }}
zone = {{ . | toJson }}
{{- end }}
{{- with .upload_bytes_per_second }}
upload_bytes_per_second = {{ . | int64 }}
{{- end }}
{{- with .download_bytes_per_second }}
download_bytes_per_second = {{ . | int64 }}
{{- end }}
{{ end -}}
{{- end -}}

{{- /* The part that wants a restart. */ -}}
{{- define "parbake.fleetSettings" -}}
[coordinator]
{{- with .Values.fleet.advertise }}
advertise = {{ . | toJson }}
{{- end }}
origin_streams = {{ .Values.fleet.originStreams | int64 }}
lease_timeout_seconds = {{ .Values.fleet.leaseTimeoutSeconds | int64 }}
certificate_lifetime_seconds = {{ .Values.fleet.certificateLifetimeSeconds | int64 }}
renewal_grace_seconds = {{ .Values.fleet.renewalGraceSeconds | int64 }}
token_lifetime_seconds = {{ .Values.fleet.tokenLifetimeSeconds | int64 }}
make_recipes = {{ .Values.fleet.makeRecipes }}

[origin]
{{- if .Values.origin.caConfigMap }}
ca_bundle = "/etc/parbake/ca/ca.pem"
{{- end }}
plain_http = {{ .Values.origin.plainHttp | toJson }}
plain_http_beyond_loopback = {{ .Values.origin.plainHttpBeyondLoopback }}
hand_down_tokens = {{ .Values.origin.handDownTokens }}
hand_down_passwords = {{ .Values.origin.handDownPasswords }}
{{ range $index, $credentials := .Values.origin.credentials }}
[origin.credentials.{{ $credentials.registry | toJson }}]
username = {{ $credentials.username | toJson }}
password_file = "/etc/parbake/credentials/{{ $index }}/password"
{{ end }}
[rates]
origin_bytes_per_second = {{ .Values.rates.originBytesPerSecond | int64 }}
download_bytes_per_second = {{ .Values.rates.downloadBytesPerSecond | int64 }}
upload_bytes_per_second = {{ .Values.rates.uploadBytesPerSecond | int64 }}

[retention]
{{- with .Values.fleet.retention.keepImages }}
keep_images = {{ . | int64 }}
{{- end }}
{{- with .Values.fleet.retention.keepDays }}
keep_days = {{ . | int64 }}
{{- end }}
{{- end -}}
