package perch_test

import (
	"strings"
	"testing"
)

// reloads are the counts of reloads, as the metrics tell them.
func (s *server) wantReloads(t *testing.T, ok, failed string) {
	t.Helper()
	_, m := get(t, "http://"+s.admin+"/metrics")
	for outcome, n := range map[string]string{"ok": ok, "failed": failed} {
		if !strings.Contains(m, `perch_config_reloads_total{outcome="`+outcome+`"} `+n+"\n") {
			t.Errorf("%s is not %s in the metrics", outcome, n)
		}
	}
}

// TestReloadMetrics: both outcomes are there from the start, and a reload that
// did not come to options counts as failed.
func TestReloadMetrics(t *testing.T) {
	s, o := reloadable(t, nil)
	s.wantReloads(t, "0", "0")
	s.ReloadFailed()
	s.wantReloads(t, "0", "1")
	s.reload(t, o)
	s.wantReloads(t, "1", "1")
}
