package cluster

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"perch/auth"
	"perch/auth/storetest"
)

// TestStreamPutBack: a node that was cut off while the stream of tokens was lost,
// and has begun anew behind it, hears of what is revoked since.
func TestStreamPutBack(t *testing.T) {
	url := registryBroker(t)
	p, way := newProxy(t, url[len("nats://"):])
	c := storetest.NewClock()
	a := startTokens(t, linkTo(t, Options{URL: url}), TokensOptions{Now: c.Now})
	cut := linkTo(t, Options{URL: way})
	b := startTokens(t, cut, TokensOptions{Now: c.Now})
	for _, jti := range []string{"1", "2", "3"} {
		if err := a.RevokeID("dev", jti, c.In(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "b hears of the third", func() bool { return b.Revoked("3", "") })
	p.Cut()
	until(t, "b is cut off", func() bool { return !cut.Connected() })
	if err := a.bucket.link.JetStream().DeleteStream(t.Context(), a.bucket.stream); err != nil {
		t.Fatal(err)
	}
	until(t, "a writes again", func() bool { return a.RevokeID("dev", "late", c.In(time.Minute)) == nil })
	p.Heal()
	until(t, "b hears of what was revoked since", func() bool { return b.Revoked("late", "") })
	if !b.Revoked("1", "") {
		t.Error("b has forgotten what it knew")
	}
}

// TestStreamLost: a node that is connected all the while makes the bucket anew, and
// hears of what is revoked then.
func TestStreamLost(t *testing.T) {
	url := registryBroker(t)
	r := startRegistry(t, linkTo(t, Options{URL: url}))
	other := startRegistry(t, linkTo(t, Options{URL: url}))
	a, b := r.tokens, other.tokens
	for _, bucket := range []*bucket{a.bucket, r.bucket} {
		if err := bucket.link.JetStream().DeleteStream(t.Context(), bucket.stream); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "clients are registered again", func() bool {
		err := r.Put(t.Context(), sampleClient("x"))
		return err == nil || errors.Is(err, auth.ErrClientExists)
	})
	until(t, "a writes again", func() bool { return a.RevokeID("dev", "late", time.Now().Add(time.Minute).Unix()) == nil })
	until(t, "b hears of it", func() bool { return b.Revoked("late", "") })
}

// TestRevocationNoShorter: of two nodes that end a family, the one that has seen it
// before its last rotation does not shorten what the other has said.
func TestRevocationNoShorter(t *testing.T) {
	url := registryBroker(t)
	c := storetest.NewClock()
	a := startTokens(t, linkTo(t, Options{URL: url}), TokensOptions{Now: c.Now})
	for _, seconds := range []time.Duration{200 * time.Second, 100 * time.Second} {
		if err := a.revokeFamily("sid", "dev", c.In(seconds)); err != nil {
			t.Fatal(err)
		}
	}
	late := startTokens(t, linkTo(t, Options{URL: url}), TokensOptions{Now: c.Now})
	c.Add(150 * time.Second)
	if !late.Revoked("", "sid") {
		t.Error("a node that comes later takes the family's last token")
	}
}

// TestRegistryWatchBegins: a record that was read before the watch hears of changes
// is not kept: nobody would tell that it has changed since.
func TestRegistryWatchBegins(t *testing.T) {
	r := startRegistry(t, linkTo(t, Options{URL: registryBroker(t)}))
	if err := r.Put(t.Context(), sampleClient("x")); err != nil {
		t.Fatal(err)
	}
	other := NewRegistry(r.bucket.link, r.tokens)
	if err := other.bucket.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := other.watching(func() {})
	begin := w.begin
	w.once, w.begin = true, func() uint64 {
		seq := begin()
		if _, err := other.Get(t.Context(), "x"); err != nil || len(other.cache) != 1 {
			t.Error(len(other.cache), err)
		}
		return seq
	}
	if done, err := other.bucket.follow(t.Context(), w); !done || err != nil {
		t.Fatal(done, err)
	}
	if len(other.cache) != 0 {
		t.Error("the record is still at hand")
	}
}

// TestWatchExpired: a watch that is to tell of all that there is ends also where the
// last of it expires before it is sent.
func TestWatchExpired(t *testing.T) {
	for _, c := range []struct {
		name string
		keys []string // without those that expire
	}{
		{"all", nil},
		{"those behind others", []string{"stays", "too"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// On a slow machine they expire before the watch is there: then longer ones do.
			for life := time.Second; !watchExpired(t, c.keys, life); life *= 2 {
				if life > 8*time.Second {
					t.Fatal("the keys expire before they are to come")
				}
			}
		})
	}
}

// watchExpired watches keys and, behind them, two that expire before they come; false:
// they had expired before there was anything to come.
func watchExpired(t *testing.T, keys []string, life time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), life+20*time.Second)
	defer cancel()
	b := openBucket(t, "some"+strconv.Itoa(int(life.Seconds())))
	for _, key := range keys {
		if _, err := b.write(ctx, key, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"goes", "goes.too"} {
		if _, err := b.write(ctx, key, nil, life); err != nil {
			t.Fatal(err)
		}
	}
	gone := func() bool {
		_, _, first := b.get(ctx, "goes")
		_, _, second := b.get(ctx, "goes.too")
		return errors.Is(first, errNoKey) && errors.Is(second, errNoKey)
	}
	var told []string
	caught := 0
	inTime := true
	w := watching{
		pattern: ">", batch: 1, once: true,
		begin: func() uint64 { return 1 },
		each: func(key string, _ jetstream.Msg, at *jetstream.MsgMetadata) {
			inTime = inTime && at.NumPending >= 2
			if told = append(told, key); len(told) == len(keys) {
				until(t, "what was to come has expired", gone)
			}
		},
		caught: func() { caught++ },
	}
	if len(keys) == 0 {
		w.begun = func() {
			inTime = !gone()
			until(t, "what was to come has expired", gone)
		}
	}
	done, err := b.follow(ctx, w)
	if !inTime {
		return false
	}
	if !done || err != nil || caught != 1 {
		t.Errorf("done %t, %v, caught %d times", done, err, caught)
	}
	if !slices.Equal(told, keys) {
		t.Errorf("told of %v", told)
	}
	return true
}

// TestWatchOnTheWay: what a consumer has sent, and nobody has taken yet, is still to
// come.
func TestWatchOnTheWay(t *testing.T) {
	b := openBucket(t, "two")
	for _, key := range []string{"one", "two"} {
		if _, err := b.write(t.Context(), key, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	cons, err := b.link.JetStream().OrderedConsumer(t.Context(), b.stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	it, err := cons.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer it.Stop()
	for taken := 1; taken <= 2; taken++ {
		m, err := it.Next(jetstream.NextMaxWait(10 * time.Second)) // the first one has both sent
		if err != nil {
			t.Fatal(err)
		}
		at, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		until(t, "both are sent", func() bool {
			info, err := cons.Info(t.Context())
			return err == nil && info.NumPending == 0 && info.Delivered.Consumer == 2
		})
		if nothing, err := b.nothingLeft(t.Context(), cons, at); err != nil || nothing != (taken == 2) {
			t.Errorf("%d of 2 taken: nothing left %t, %v", taken, nothing, err)
		}
	}
	if nothing, err := b.nothingLeft(t.Context(), cons, nil); err != nil || nothing {
		t.Errorf("none of this consumer taken: nothing left %t, %v", nothing, err)
	}
}

// TestWatchSilent: a watch to which nothing comes, though there is something, fails:
// whoever reads once says so, and who reads on begins anew.
func TestWatchSilent(t *testing.T) {
	b := openBucket(t, "silent")
	if _, err := b.write(t.Context(), "key", nil, 0); err != nil {
		t.Fatal(err)
	}
	stream, err := b.opened()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done, err := b.follow(ctx, watching{
		pattern: ">", batch: 1, once: true,
		begin: func() uint64 { return 1 },
		begun: func() {
			for name := range stream.ConsumerNames(ctx).Name() {
				if _, err := stream.PauseConsumer(ctx, name, time.Now().Add(time.Hour)); err != nil {
					t.Error(err)
				}
			}
		},
		each:   func(key string, _ jetstream.Msg, _ *jetstream.MsgMetadata) { t.Errorf("told of %s", key) },
		caught: func() { t.Error("caught") },
	})
	if done || !errors.Is(err, errSilent) {
		t.Error(done, err)
	}
}

func openBucket(t testing.TB, kind string) *bucket {
	t.Helper()
	l := linkTo(t, Options{URL: registryBroker(t)})
	if err := l.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := newBucket(l, kind)
	if err := b.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestListingWhileClientsChange: what a walk through all ids has found serves the
// pages behind it, also where clients were written meanwhile.
func TestListingWhileClientsChange(t *testing.T) {
	r := startRegistry(t, linkTo(t, Options{URL: registryBroker(t)}))
	for _, id := range []string{"a", "b", "c"} {
		if err := r.Put(t.Context(), sampleClient(id)); err != nil {
			t.Fatal(err)
		}
	}
	var walk, during int // the number of the walk, and of the last one that a client was written in
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		under := func() (now int, written bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.walks == 0 {
				return 0, false
			}
			return walk, during == walk
		}
		for {
			// Once only: behind the walk, it would come into what that has found.
			if before, written := under(); before > 0 && !written {
				r.forget("bb")
				if now, _ := under(); now == before {
					r.mu.Lock()
					during = before
					r.mu.Unlock()
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	until(t, "a client written during a walk", func() bool {
		r.mu.Lock()
		walk++
		r.listed = nil
		r.mu.Unlock()
		ids, more, err := r.page(t.Context(), "", 1)
		if err != nil || len(ids) != 1 || !more {
			t.Fatal(ids, more, err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		return during == walk
	})
	close(stop)
	<-done
	if r.listed == nil || !slices.Contains(r.listed.ids, "bb") || r.walks != 0 || r.written != nil {
		t.Fatalf("%+v, %d under way, %d noted", r.listed, r.walks, len(r.written))
	}
}
