package stats

import (
	"fmt"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes is how many scrapes run at once; further ones get 503. Each takes
// locks that the loops take too.
const maxScrapes = 4

// NewRegistry makes a registry of its own, nothing global, with what snapshot
// tells and with the numbers of the Go runtime and the process. snapshot is
// called at each scrape, on the goroutine of the request, perhaps several at
// once.
func NewRegistry(snapshot func() Snapshot) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		&collector{snapshot: snapshot, metrics: table()},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return r
}

// Handler serves the page of r in the Prometheus text format, or in
// OpenMetrics where the scraper asks for it. A metric that fails is left out
// and logged. Safe from any goroutine.
func Handler(r prometheus.Gatherer, logger *slog.Logger) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            scrapeLog{logger},
		ErrorHandling:       promhttp.ContinueOnError,
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: maxScrapes,
	})
}

type scrapeLog struct{ logger *slog.Logger }

// Println implements promhttp.Logger.
func (l scrapeLog) Println(v ...any) {
	l.logger.Error("metrics scrape failed", "err", fmt.Sprint(v...))
}
