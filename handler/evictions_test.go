package handler

import (
	"fmt"
	"testing"

	"perch/auth"
	"perch/session"
)

// TestEvictionsAtOnce: what is revoked while a walk through the sessions is under
// way, however much it is, ends with one more.
func TestEvictionsAtOnce(t *testing.T) {
	type walk struct{ done chan struct{} }
	walks := make(chan walk, 10_000)
	e := NewEvictions(func(func(*session.Session)) <-chan struct{} {
		w := walk{make(chan struct{})}
		walks <- w
		return w.done
	})
	e.End(auth.Revocation{ID: "first", Client: "c"})
	first := <-walks
	for i := range 10_000 {
		e.End(auth.Revocation{Family: fmt.Sprint(i), Client: "c"})
	}
	close(first.done)
	second := <-walks
	e.mu.Lock()
	if !e.next.empty() {
		t.Error("the second walk is not for all of them")
	}
	e.mu.Unlock()
	close(second.done)
	e.done.Wait()
	if len(walks) != 0 {
		t.Errorf("%d walks more", len(walks))
	}
	e.End(auth.Revocation{ID: "last"})
	<-walks // which does not end
	e.Close()
	e.End(auth.Revocation{ID: "late"})
	e.Close()
	if len(walks) != 0 {
		t.Error("a walk behind the end")
	}
}
