package perch_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch"
	"perch/handler"
)

// TestRPCIsolation: methods that block or panic harm neither other sessions
// nor other methods, however many of them are under way.
func TestRPCIsolation(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Pool.Workers = 8 })
	entered := make(chan struct{}, events)
	release := make(chan struct{})
	s.HandleRPC("block", func(ctx context.Context, r handler.RPCRequest) ([]byte, error) {
		entered <- struct{}{}
		select {
		case <-release:
			return []byte(`"done"`), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	s.HandleRPC("panic", func(context.Context, handler.RPCRequest) ([]byte, error) { panic("on purpose") })
	s.HandleRPC("fail", func(context.Context, handler.RPCRequest) ([]byte, error) { return nil, errors.New("inner") })
	s.HandleRPC("who", func(_ context.Context, r handler.RPCRequest) ([]byte, error) {
		return fmt.Appendf(nil, "%q", r.User), nil
	})
	dial := func(user string) *sdk {
		k := newSDK(t, centrifuge.NewJsonClient(s.url(), centrifuge.Config{Token: token(user, time.Hour), ReadTimeout: 30 * time.Second}))
		k.connect(t)
		return k
	}
	alice, bob := dial("alice"), dial("bob")

	_, err := alice.RPC(bounded(t), "panic", []byte("{}"))
	wantCode(t, err, 100)
	_, err = alice.RPC(bounded(t), "fail", []byte("{}"))
	wantCode(t, err, 100)
	if r, err := alice.RPC(bounded(t), "who", []byte("{}")); err != nil || string(r.Data) != `"alice"` {
		t.Errorf("after a panic: %s, %v", r.Data, err)
	}

	// As many blocked calls as there are workers, from as many sessions.
	results := make(chan error, 8)
	for i := range 8 {
		k := dial(fmt.Sprint("blocked", i))
		go func() {
			r, err := k.RPC(context.Background(), "block", []byte("{}"))
			if err == nil && string(r.Data) != `"done"` {
				err = fmt.Errorf("got %s", r.Data)
			}
			results <- err
		}()
	}
	await(t, "a blocked call", entered)
	// Others connect, subscribe, publish and call as if nothing were.
	carol := dial("carol")
	sub := carol.subscribe(t, "news", centrifuge.SubscriptionConfig{})
	await(t, "subscribed", sub.subscribed)
	if _, err := bob.Publish(bounded(t), "news", []byte("1")); err != nil {
		t.Error(err)
	}
	await(t, "publication", sub.published)
	if r, err := bob.RPC(bounded(t), "who", []byte("{}")); err != nil || string(r.Data) != `"bob"` {
		t.Errorf("beside blocked calls: %s, %v", r.Data, err)
	}
	close(release)
	for range 8 {
		if err := await(t, "a blocked call's end", results); err != nil {
			t.Errorf("blocked call: %v", err)
		}
	}
}

// TestRPCOrder: a session's commands are answered in their order, although the
// pool is shared.
func TestRPCOrder(t *testing.T) {
	s := start(t, nil)
	s.HandleRPC("wait", func(ctx context.Context, r handler.RPCRequest) ([]byte, error) {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
		return r.Data, nil
	})
	p := s.session(t, "alice")
	p.send(`{"id":2,"subscribe":{"channel":"order"}}`)
	p.reply(2)
	var seen []string
	p.send(`{"id":3,"rpc":{"method":"wait","data":"a"}}`, `{"id":4,"rpc":{"method":"wait","data":"b"}}`, `{"id":5,"publish":{"channel":"order","data":"c"}}`)
	for len(seen) < 3 {
		for _, r := range p.lines() {
			if id, ok := r["id"].(float64); ok {
				seen = append(seen, fmt.Sprint(id))
			}
		}
	}
	if got := fmt.Sprint(seen); got != "[3 4 5]" {
		t.Errorf("answered in the order %s", got)
	}
}
