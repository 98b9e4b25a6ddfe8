// The schemas of ServiceMonitor, PodMonitor and PrometheusRule, for the chart's tests; nothing of it is built.
module itrain.dev/tools/monitoring

go 1.25.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
