package perch_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/centrifugal/centrifuge-go"

	"perch"
	"perch/handler"
)

// A server with a method of its own, a client that calls it, and a push.
func Example() {
	if err := example(); err != nil {
		log.Print(err)
	}
	// Output:
	// answer: "hello alice"
	// push: {"text":"the door is open"}
}

func example() error {
	dir, err := os.MkdirTemp("", "perch-example")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	opts := perch.DefaultOptions()
	opts.Listen, opts.Admin = "127.0.0.1:0", "127.0.0.1:0" // free ports
	opts.DataDir = dir                                     // a signing key is made here
	opts.Topics.Default.AllowSubscribeForClient = true
	opts.Logger = slog.New(slog.DiscardHandler)
	srv, err := perch.New(opts)
	if err != nil {
		return err
	}
	srv.HandleRPC("greet", func(_ context.Context, r handler.RPCRequest) ([]byte, error) {
		return fmt.Appendf(nil, "%q", "hello "+r.User), nil
	})

	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	// Run drains before it returns.
	defer func() {
		stop()
		if err := <-ended; err != nil {
			log.Print(err)
		}
	}()
	select {
	case <-srv.Ready():
	case err := <-ended:
		ended <- nil
		return err
	}

	token, err := perch.IssueToken(opts, perch.TokenRequest{Subject: "alice"})
	if err != nil {
		return err
	}
	client := centrifuge.NewJsonClient("ws://"+srv.PublicAddr()+"/connection/websocket", centrifuge.Config{Token: token})
	defer client.Close()
	if err := client.Connect(); err != nil {
		return err
	}
	answer, err := client.RPC(ctx, "greet", []byte("{}"))
	if err != nil {
		return err
	}
	fmt.Println("answer:", string(answer.Data))

	news, err := client.NewSubscription("news")
	if err != nil {
		return err
	}
	subscribed, pushed := make(chan struct{}), make(chan []byte, 1)
	news.OnSubscribed(func(centrifuge.SubscribedEvent) { close(subscribed) })
	news.OnPublication(func(e centrifuge.PublicationEvent) { pushed <- e.Data })
	if err := news.Subscribe(); err != nil {
		return err
	}
	select {
	case <-subscribed:
	case <-ctx.Done():
		return errors.New("not subscribed in time")
	}
	if err := srv.Publish(ctx, "news", []byte(`{"text":"the door is open"}`)); err != nil {
		return err
	}
	select {
	case data := <-pushed:
		fmt.Println("push:", string(data))
	case <-ctx.Done():
		return errors.New("no push in time")
	}
	return nil
}
