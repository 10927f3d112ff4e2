// Command hold opens very many WebSocket sessions from one process and keeps
// them, and prints what it saw as JSON. A process may have 20,000 descriptors
// where the limit is so: start several for more sessions.
//
//	go run ./internal/testkit/cmd/hold -n 10000 -secret S -topic own -burst 20x4096 -hold 1m
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"perch/internal/testkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hold:", err)
		os.Exit(1)
	}
}

type result struct {
	Seconds           float64            `json:"seconds"` // from the first connect to the last answer
	ConnectsPerSecond float64            `json:"connects_per_second"`
	BurstSeconds      float64            `json:"burst_seconds,omitempty"`
	Stats             testkit.DenseStats `json:"stats"`
	Error             string             `json:"error,omitempty"`
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("hold", flag.ContinueOnError)
	var (
		target  = flags.String("url", "ws://127.0.0.1:8000/connection/websocket", "where to connect; the host is an IPv4 address")
		n       = flags.Int("n", 1000, "sessions")
		secret  = flags.String("secret", "", "HMAC secret that signs the tokens; empty: connect without a token")
		topics  = flags.String("topic", "shared", "what a session subscribes: shared or own")
		bursts  = flags.String("burst", "", "COUNTxSIZE: messages that each session publishes; wants -topic own")
		raw     = flags.Bool("raw", false, "upgrade and send nothing")
		hold    = flags.Duration("hold", 0, "how long to keep the sessions; 0: until interrupted")
		window  = flags.Int("window", 64, "connections under way at once")
		sources = flags.Int("sources", 1, "source addresses, from 127.0.0.1 on")
		gone    = flags.Bool("reset", false, "end the connections by RST")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	u, err := url.Parse(*target)
	if err != nil {
		return err
	}
	topic := testkit.SharedTopic
	switch *topics {
	case "shared":
	case "own":
		topic = testkit.OwnTopic
	default:
		return fmt.Errorf("-topic %q: shared or own", *topics)
	}
	count, size, err := parseBurst(*bursts)
	if err != nil {
		return err
	}
	if count > 0 && (*topics != "own" || *raw) {
		return errors.New("-burst wants -topic own and no -raw: on a shared topic each message would go to all")
	}
	opts := testkit.SessionOptions(u.Host, u.RequestURI(), *secret, topic)
	switch {
	case *raw:
		opts.First, opts.Replies = nil, 0
	case *secret == "":
		opts.First = func(i int) []byte {
			return testkit.Commands(testkit.ConnectCommand(""), testkit.SubscribeCommand(2, topic(i)))
		}
	}
	opts.Window, opts.Sources = *window, *sources
	d, err := testkit.NewDense(opts)
	if err != nil {
		return err
	}
	defer d.Close(*gone)

	var r result
	work := func() error {
		start := time.Now()
		err := d.Open(ctx, *n)
		r.Seconds = time.Since(start).Seconds()
		r.ConnectsPerSecond = float64(d.Stats().Ready) / r.Seconds
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "hold: %d sessions in %.2f s\n", *n, r.Seconds)
		if count > 0 {
			start, blob := time.Now(), testkit.Blob(size)
			err := d.Burst(ctx, count, *n, 2, func(i, k int) []byte {
				return testkit.Commands(testkit.PublishCommand(k+3, topic(i), blob))
			})
			r.BurstSeconds = time.Since(start).Seconds()
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "hold: burst in %.2f s\n", r.BurstSeconds)
		}
		if *hold == 0 {
			*hold = 1<<63 - 1
		}
		if err := d.Hold(ctx, *hold); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	}
	werr := work()
	if r.Stats = d.Stats(); werr != nil {
		r.Error = werr.Error()
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return errors.Join(enc.Encode(r), werr)
}

func parseBurst(s string) (count, size int, err error) {
	if s == "" {
		return 0, 0, nil
	}
	c, z, ok := strings.Cut(s, "x")
	if ok {
		if count, err = strconv.Atoi(c); err == nil {
			size, err = strconv.Atoi(z)
		}
	}
	if !ok || err != nil || count < 1 || size < 2 {
		return 0, 0, fmt.Errorf("-burst %q: want COUNTxSIZE, such as 20x4096", s)
	}
	return count, size, nil
}
