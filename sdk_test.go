package perch_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch"
	"perch/internal/testkit"
)

// sdk is a client of the published Go SDK, its events on Go's own queues.
type sdk struct {
	*centrifuge.Client
	connected    chan centrifuge.ConnectedEvent
	connecting   chan centrifuge.ConnectingEvent
	disconnected chan centrifuge.DisconnectedEvent
	published    chan centrifuge.ServerPublicationEvent
	subscribed   chan centrifuge.ServerSubscribedEvent
	unsubscribed chan centrifuge.ServerUnsubscribedEvent
}

// eachProtocol runs f for JSON and for Protobuf.
func eachProtocol(t *testing.T, f func(t *testing.T, dial func(t *testing.T, url string, c centrifuge.Config) *sdk)) {
	for name, create := range map[string]func(string, centrifuge.Config) *centrifuge.Client{
		"JSON": centrifuge.NewJsonClient, "Protobuf": centrifuge.NewProtobufClient,
	} {
		t.Run(name, func(t *testing.T) {
			f(t, func(t *testing.T, url string, c centrifuge.Config) *sdk {
				t.Helper()
				c.HandshakeTimeout = testkit.Timeout
				return newSDK(t, create(url, c))
			})
		})
	}
}

// events is the room of each queue: more than any test makes, so that no
// callback of the SDK ever blocks.
const events = 256

func newSDK(t *testing.T, c *centrifuge.Client) *sdk {
	k := &sdk{
		Client:       c,
		connected:    make(chan centrifuge.ConnectedEvent, events),
		connecting:   make(chan centrifuge.ConnectingEvent, events),
		disconnected: make(chan centrifuge.DisconnectedEvent, events),
		published:    make(chan centrifuge.ServerPublicationEvent, events),
		subscribed:   make(chan centrifuge.ServerSubscribedEvent, events),
		unsubscribed: make(chan centrifuge.ServerUnsubscribedEvent, events),
	}
	c.OnConnected(func(e centrifuge.ConnectedEvent) { k.connected <- e })
	c.OnConnecting(func(e centrifuge.ConnectingEvent) { k.connecting <- e })
	c.OnDisconnected(func(e centrifuge.DisconnectedEvent) { k.disconnected <- e })
	c.OnPublication(func(e centrifuge.ServerPublicationEvent) { k.published <- e })
	c.OnSubscribed(func(e centrifuge.ServerSubscribedEvent) { k.subscribed <- e })
	c.OnUnsubscribed(func(e centrifuge.ServerUnsubscribedEvent) { k.unsubscribed <- e })
	t.Cleanup(c.Close)
	return k
}

func (k *sdk) connect(t *testing.T) centrifuge.ConnectedEvent {
	t.Helper()
	if err := k.Connect(); err != nil {
		t.Fatalf("connect: %v", err)
	}
	return await(t, "connected", k.connected)
}

// subscription is one of an sdk, its events on queues.
type subscription struct {
	*centrifuge.Subscription
	subscribed   chan centrifuge.SubscribedEvent
	unsubscribed chan centrifuge.UnsubscribedEvent
	published    chan centrifuge.PublicationEvent
	failed       chan error
}

func (k *sdk) subscribe(t *testing.T, topic string, c centrifuge.SubscriptionConfig) *subscription {
	t.Helper()
	raw, err := k.NewSubscription(topic, c)
	if err != nil {
		t.Fatal(err)
	}
	s := &subscription{
		Subscription: raw,
		subscribed:   make(chan centrifuge.SubscribedEvent, events),
		unsubscribed: make(chan centrifuge.UnsubscribedEvent, events),
		published:    make(chan centrifuge.PublicationEvent, events),
		failed:       make(chan error, events),
	}
	raw.OnSubscribed(func(e centrifuge.SubscribedEvent) { s.subscribed <- e })
	raw.OnUnsubscribed(func(e centrifuge.UnsubscribedEvent) { s.unsubscribed <- e })
	raw.OnPublication(func(e centrifuge.PublicationEvent) { s.published <- e })
	raw.OnError(func(e centrifuge.SubscriptionErrorEvent) { s.failed <- e.Error })
	if err := raw.Subscribe(); err != nil {
		t.Fatal(err)
	}
	return s
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Timeout)
	t.Cleanup(cancel)
	return ctx
}

// wantCode checks that err is the protocol's error of the code.
func wantCode(t *testing.T, err error, code uint32) {
	t.Helper()
	var e *centrifuge.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("got error %v, want code %d", err, code)
	}
}

func TestSDKPubSub(t *testing.T) {
	s := start(t, nil)
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		topic := "news-" + strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:])
		alice := dial(t, s.url(), centrifuge.Config{Token: token("alice", time.Hour)})
		bob := dial(t, s.url(), centrifuge.Config{Token: token("bob", time.Hour)})
		if alice.connect(t).ClientID == bob.connect(t).ClientID {
			t.Error("two sessions with one client id")
		}
		as := alice.subscribe(t, topic, centrifuge.SubscriptionConfig{})
		bs := bob.subscribe(t, topic, centrifuge.SubscriptionConfig{})
		await(t, "subscribed", as.subscribed)
		await(t, "subscribed", bs.subscribed)

		if _, err := as.Publish(bounded(t), []byte(`{"from":"alice"}`)); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []*subscription{as, bs} {
			e := await(t, "publication", sub.published)
			if string(e.Data) != `{"from":"alice"}` {
				t.Errorf("got %s", e.Data)
			}
			if e.Info == nil || e.Info.User != "alice" || e.Info.Client == "" {
				t.Errorf("publisher's info: %+v", e.Info)
			}
		}
		s.api(t, "publish", fmt.Sprintf(`{"channel":%q,"data":{"n":1}}`, topic))
		for _, sub := range []*subscription{as, bs} {
			if e := await(t, "publication of the API", sub.published); string(e.Data) != `{"n":1}` || e.Info != nil {
				t.Errorf("got %s, info %+v", e.Data, e.Info)
			}
		}
		// Order holds for one publisher.
		for i := range 100 {
			s.api(t, "publish", fmt.Sprintf(`{"channel":%q,"data":%d}`, topic, i))
		}
		for i := range 100 {
			if e := await(t, "publication in order", bs.published); string(e.Data) != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", e.Data, i)
			}
		}
		if err := bs.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
		await(t, "unsubscribed", bs.unsubscribed)
		eventually(t, "bob is no subscriber any more", func() bool {
			s.api(t, "publish", fmt.Sprintf(`{"channel":%q,"data":"late"}`, topic))
			select {
			case <-bs.published:
				return false
			case <-time.After(20 * time.Millisecond):
				return true
			}
		})
		if err := bs.Subscribe(); err != nil {
			t.Fatal(err)
		}
		await(t, "subscribed again", bs.subscribed)
		s.api(t, "unsubscribe", fmt.Sprintf(`{"user":"bob","channel":%q}`, topic))
		await(t, "unsubscribed by the API", bs.unsubscribed)
		if err := alice.Disconnect(); err != nil {
			t.Fatal(err)
		}
		await(t, "disconnected", alice.disconnected)
	})
}

func TestSDKPermissions(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Topics.Default.AllowSubscribeForClient = false
		o.Topics.Default.AllowPublishForClient = false
	})
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		k := dial(t, s.url(), centrifuge.Config{Token: token("alice", time.Hour)})
		k.connect(t)
		sub := k.subscribe(t, "closed", centrifuge.SubscriptionConfig{})
		if e := await(t, "unsubscribed", sub.unsubscribed); e.Code != 103 {
			t.Errorf("got %+v, want 103", e)
		}
		_, err := k.Publish(bounded(t), "closed", []byte(`1`))
		wantCode(t, err, 103)
		sub = k.subscribe(t, "nowhere:x", centrifuge.SubscriptionConfig{})
		if e := await(t, "unsubscribed", sub.unsubscribed); e.Code != 102 {
			t.Errorf("got %+v, want 102", e)
		}
		// A subscription token opens what the namespace does not.
		sub = k.subscribe(t, "opened", centrifuge.SubscriptionConfig{
			Token: testkit.SubscriptionToken(testSecret, "alice", "opened", time.Hour),
		})
		await(t, "subscribed by token", sub.subscribed)
		sub = k.subscribe(t, "forged", centrifuge.SubscriptionConfig{
			Token: testkit.SubscriptionToken("not the secret of the server, surely", "alice", "forged", time.Hour),
		})
		if e := await(t, "unsubscribed", sub.unsubscribed); e.Code != 103 {
			t.Errorf("forged subscription token: got %+v, want 103", e)
		}
		// Of another topic: the session ends for good.
		k.subscribe(t, "other", centrifuge.SubscriptionConfig{
			Token: testkit.SubscriptionToken(testSecret, "alice", "opened", time.Hour),
		})
		if e := await(t, "disconnected", k.disconnected); e.Code != 3500 {
			t.Errorf("got %+v, want 3500", e)
		}
	})
}

func TestSDKTokens(t *testing.T) {
	s := start(t, nil)
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		t.Run("forged", func(t *testing.T) {
			k := dial(t, s.url(), centrifuge.Config{Token: testkit.Token("not the secret of the server, surely", "alice", time.Hour, nil)})
			_ = k.Connect()
			if e := await(t, "disconnected", k.disconnected); e.Code != 3500 {
				t.Errorf("got %+v, want 3500", e)
			}
		})
		t.Run("expired is refreshed", func(t *testing.T) {
			var asked atomic.Int32
			k := dial(t, s.url(), centrifuge.Config{
				Token: token("alice", -time.Minute),
				GetToken: func(centrifuge.ConnectionTokenEvent) (string, error) {
					asked.Add(1)
					return token("alice", time.Hour), nil
				},
			})
			_ = k.Connect()
			await(t, "connected", k.connected)
			if asked.Load() != 1 {
				t.Errorf("asked for a token %d times, want once", asked.Load())
			}
		})
		t.Run("refreshed before it expires", func(t *testing.T) {
			var asked atomic.Int32
			refreshed := make(chan struct{}, events)
			k := dial(t, s.url(), centrifuge.Config{
				Token: token("alice", 2*time.Second),
				GetToken: func(centrifuge.ConnectionTokenEvent) (string, error) {
					asked.Add(1)
					refreshed <- struct{}{}
					return token("alice", time.Hour), nil
				},
			})
			k.connect(t)
			await(t, "the refresh", refreshed)
			// The old token's time passes; the session lives on.
			select {
			case e := <-k.connecting:
				if e.Code != 0 {
					t.Errorf("lost the connection: %+v", e)
				}
			default:
			}
			select {
			case e := <-k.disconnected:
				t.Errorf("disconnected: %+v", e)
			case e := <-k.connecting:
				t.Errorf("lost the connection: %+v", e)
			case <-time.After(3 * time.Second):
			}
		})
		t.Run("none", func(t *testing.T) {
			k := dial(t, s.url(), centrifuge.Config{})
			_ = k.Connect()
			e := await(t, "disconnected", k.disconnected)
			if e.Code < 3500 && e.Code != 101 {
				t.Errorf("got %+v, want a refusal for good", e)
			}
		})
	})
}

func TestSDKServerSide(t *testing.T) {
	s := start(t, nil)
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		user := strings.ReplaceAll(t.Name(), "/", "-")
		k := dial(t, s.url(), centrifuge.Config{
			Token: testkit.Token(testSecret, user, time.Hour, map[string]any{"channels": []string{"personal-" + user}}),
		})
		k.connect(t)
		if e := await(t, "subscribed by the token", k.subscribed); e.Channel != "personal-"+user {
			t.Errorf("got %+v", e)
		}
		s.api(t, "publish", fmt.Sprintf(`{"channel":"personal-%s","data":"hello"}`, user))
		if e := await(t, "publication", k.published); string(e.Data) != `"hello"` || e.Channel != "personal-"+user {
			t.Errorf("got %+v", e)
		}
		s.api(t, "subscribe", fmt.Sprintf(`{"user":%q,"channel":"extra"}`, user))
		if e := await(t, "subscribed by the API", k.subscribed); e.Channel != "extra" {
			t.Errorf("got %+v", e)
		}
		s.api(t, "broadcast", fmt.Sprintf(`{"channels":["extra","personal-%s"],"data":{"a":1}}`, user))
		got := map[string]bool{}
		for range 2 {
			got[await(t, "broadcast", k.published).Channel] = true
		}
		if len(got) != 2 {
			t.Errorf("broadcast came on %v", got)
		}
		s.api(t, "unsubscribe", fmt.Sprintf(`{"user":%q,"channel":"extra"}`, user))
		if e := await(t, "unsubscribed by the API", k.unsubscribed); e.Channel != "extra" {
			t.Errorf("got %+v", e)
		}
	})
}

func TestSDKRPC(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		s := start(t, func(o *perch.Options) { *o = o.WithDev() })
		eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
			k := dial(t, s.url(), centrifuge.Config{Token: token("alice", time.Hour)})
			k.connect(t)
			for i := range 20 {
				r, err := k.RPC(bounded(t), "echo", fmt.Appendf(nil, `{"n":%d}`, i))
				if err != nil || string(r.Data) != fmt.Sprintf(`{"n":%d}`, i) {
					t.Fatalf("echo: %s, %v", r.Data, err)
				}
			}
			if r, err := k.RPC(bounded(t), "time", []byte("{}")); err != nil || len(r.Data) == 0 {
				t.Errorf("time: %s, %v", r.Data, err)
			}
			_, err := k.RPC(bounded(t), "nothing", []byte("{}"))
			wantCode(t, err, 104)
		})
	})
	t.Run("none registered", func(t *testing.T) {
		s := start(t, nil)
		eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
			k := dial(t, s.url(), centrifuge.Config{Token: token("alice", time.Hour)})
			k.connect(t)
			_, err := k.RPC(bounded(t), "echo", []byte("{}"))
			wantCode(t, err, 108)
			sub := k.subscribe(t, "news", centrifuge.SubscriptionConfig{})
			await(t, "subscribed", sub.subscribed)
			_, err = sub.Presence(bounded(t))
			wantCode(t, err, 108)
			_, err = sub.PresenceStats(bounded(t))
			wantCode(t, err, 108)
			_, err = sub.History(bounded(t))
			wantCode(t, err, 108)
			// A message that nobody takes ends the session, as it does for the SDKs'
			// users elsewhere.
			if err := k.Send(bounded(t), []byte(`{}`)); err != nil {
				t.Error(err)
			}
			if e := await(t, "disconnected", k.disconnected); e.Code != 3508 {
				t.Errorf("got %+v, want 3508", e)
			}
		})
	})
}

func TestSDKReconnects(t *testing.T) {
	s := start(t, nil)
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		user := strings.ReplaceAll(t.Name(), "/", "-")
		k := dial(t, s.url(), centrifuge.Config{Token: token(user, time.Hour)})
		k.connect(t)
		await(t, "connecting", k.connecting)
		sub := k.subscribe(t, "again-"+user, centrifuge.SubscriptionConfig{})
		await(t, "subscribed", sub.subscribed)
		s.api(t, "disconnect", fmt.Sprintf(`{"user":%q,"disconnect":{"code":3011,"reason":"again"}}`, user))
		if e := await(t, "connecting again", k.connecting); e.Code != 3011 || e.Reason != "again" {
			t.Errorf("got %+v, want the code and the reason of the API's call", e)
		}
		await(t, "connected again", k.connected)
		await(t, "subscribed again", sub.subscribed)
		s.api(t, "publish", fmt.Sprintf(`{"channel":"again-%s","data":1}`, user))
		await(t, "publication", sub.published)
		s.api(t, "disconnect", fmt.Sprintf(`{"user":%q}`, user))
		if e := await(t, "disconnected for good", k.disconnected); e.Code != 3503 {
			t.Errorf("got %+v, want 3503", e)
		}
	})
}

func TestSDKInsecure(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Insecure = true
		o.Topics.Default.AllowSubscribeForClient = false
		o.Topics.Default.AllowPublishForClient = false
	})
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		k := dial(t, s.url(), centrifuge.Config{})
		k.connect(t)
		topic := "open-" + strings.ReplaceAll(t.Name(), "/", "-")
		sub := k.subscribe(t, topic, centrifuge.SubscriptionConfig{})
		await(t, "subscribed", sub.subscribed)
		if _, err := k.Publish(bounded(t), topic, []byte(`"x"`)); err != nil {
			t.Fatal(err)
		}
		if e := await(t, "publication", sub.published); string(e.Data) != `"x"` {
			t.Errorf("got %s", e.Data)
		}
	})
}

// TestSDKHeartbeat: the SDK sees the server's pings in time, and its answers
// count.
func TestSDKHeartbeat(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Heartbeat.Interval, o.Heartbeat.Timeout = time.Second, 500*time.Millisecond
	})
	eachProtocol(t, func(t *testing.T, dial func(*testing.T, string, centrifuge.Config) *sdk) {
		k := dial(t, s.url(), centrifuge.Config{Token: token("alice", time.Hour), MaxServerPingDelay: time.Second})
		k.connect(t)
		await(t, "connecting", k.connecting)
		select {
		case e := <-k.connecting:
			t.Errorf("lost the connection: %+v", e)
		case e := <-k.disconnected:
			t.Errorf("disconnected: %+v", e)
		case <-time.After(4 * time.Second):
		}
	})
}
