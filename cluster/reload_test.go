package cluster

import (
	"testing"
	"time"

	"perch/topic"
)

// TestNamespacesChange: a namespace that gets a history has a stream from then on,
// one whose limits change has them in its stream, and one that is no more has
// none.
func TestNamespacesChange(t *testing.T) {
	a, b := pair(t, news)
	first := a.must("news:x", "1")
	late := topic.NamespaceOptions{Name: "late", HistorySize: 3, HistoryTTL: time.Hour}
	more := news
	more.HistorySize = 9
	for _, n := range []*node{a, b} {
		n.SetNamespaces(namespaces(t, []topic.NamespaceOptions{more, late}))
		n.waitReady()
	}
	a.must("late:x", "l")
	b.got.wait(t, "late:x", 1)
	until(t, "changed", func() bool {
		st, err := a.link.js.Stream(t.Context(), "perch_h_news")
		return err == nil && st.CachedInfo().Config.MaxMsgsPerSubject == 10
	})
	a.must("news:x", "2")
	if pubs, _, err := b.read("news:x", topic.Filter{Limit: 5, Since: &first}); err != nil || text(pubs) != "2" {
		t.Errorf("since the first: %q, %v", text(pubs), err)
	}
	a.SetNamespaces(namespaces(t, []topic.NamespaceOptions{late}))
	if _, err := a.publish("news:x", "3", stored); err == nil {
		t.Error("published into the history of a namespace that has none")
	}
	b.must("news:x", "4")
	b.got.wait(t, "news:x", 3)
}
