package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func clientsCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "clients COMMAND",
		Short: "Register devices and backends: list, show, create, update, enable, disable, delete",
		Long: "Works on the clients of a running server, over its admin port: those of the registry\n" +
			"(engine: nats). Clients of the configuration are listed, and change there.\n\n" +
			"The admin port is admin, the key api.key of the same configuration; where that has\n" +
			"none, the file api_key in data_dir.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("a command is missing, such as perch clients list")
			}
			return usagef("unknown command %q", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(clientsList(environ), clientsShow(environ), clientsCreate(environ), clientsUpdate(environ),
		clientsSwitch(environ, "enable", "Let a client get tokens again", false),
		clientsSwitch(environ, "disable", "Refuse a client, end its live sessions and revoke its tokens, on all nodes", true),
		clientsDelete(environ))
	return cmd
}

// clientsFlags are those of every command on clients.
type clientsFlags struct {
	*configFlags
	json bool
}

func newClientsFlags(cmd *cobra.Command, environ []string) *clientsFlags {
	c := &clientsFlags{configFlags: newConfigFlags(cmd, environ)}
	c.text(cmd, "admin", "the server's admin `address` (default 127.0.0.1:8001)")
	c.text(cmd, "data_dir", "`directory` of the server's api_key (default perch-data)")
	cmd.Flags().BoolVar(&c.json, "json", false, "print JSON")
	return c
}

// oneID is the argument of a command on one client.
func oneID(_ *cobra.Command, args []string) error {
	switch {
	case len(args) == 0 || args[0] == "":
		return usagef("the client's id is missing")
	case len(args) > 1:
		return usagef("unexpected argument %q", args[1])
	}
	return nil
}

// registeredClient is a client as the server shows it.
type registeredClient struct {
	ID         string          `json:"id"`
	Source     string          `json:"source"`
	User       string          `json:"user"`
	AnyUser    bool            `json:"any_user"`
	Channels   []string        `json:"channels"`
	TokenTTL   int64           `json:"token_ttl"`
	RefreshTTL int64           `json:"refresh_ttl"`
	Metadata   json.RawMessage `json:"metadata"`
	Disabled   bool            `json:"disabled"`
	Created    string          `json:"created"`
	Updated    string          `json:"updated"`
	Secret     string          `json:"secret"`
}

func (c *registeredClient) state() string {
	if c.Disabled {
		return "disabled"
	}
	return "enabled"
}

// show prints a client, or the JSON that it came as.
func (c *clientsFlags) show(cmd *cobra.Command, raw json.RawMessage) error {
	out := cmd.OutOrStdout()
	if c.json {
		_, err := fmt.Fprintln(out, string(raw))
		return err
	}
	var one registeredClient
	if err := json.Unmarshal(raw, &one); err != nil {
		return fmt.Errorf("the server's answer can't be read: %w", err)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	seconds := func(n int64) string {
		switch {
		case n == 0:
			return ""
		case n < 0:
			return "none"
		}
		return (time.Duration(n) * time.Second).String()
	}
	line("id", one.ID)
	line("secret", one.Secret)
	line("source", one.Source)
	line("state", one.state())
	user := one.User
	if one.AnyUser {
		user += " (may ask for any)"
	}
	line("user", user)
	line("channels", strings.Join(one.Channels, ","))
	line("token_ttl", seconds(one.TokenTTL))
	line("refresh_ttl", seconds(one.RefreshTTL))
	line("metadata", string(one.Metadata))
	line("created", one.Created)
	line("updated", one.Updated)
	if err := w.Flush(); err != nil {
		return err
	}
	if one.Secret != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "perch: the secret is shown this once: keep it now")
	}
	return nil
}

func clientsList(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clients, sorted by id",
		Long:  "Lists the clients, sorted by id. With --json, each is a JSON object on a line of its own.",
		Args:  noArgs,
	}
	c := newClientsFlags(cmd, environ)
	limit := cmd.Flags().Int("limit", 0, "the `most` clients to list (default all)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *limit < 0 || cmd.Flags().Changed("limit") && *limit == 0 {
			return usagef("--limit: %d must be at least 1", *limit)
		}
		admin, err := c.admin(cmd)
		if err != nil {
			return err
		}
		const page = 1000
		out := cmd.OutOrStdout()
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		if !c.json {
			fmt.Fprintln(w, "ID\tSTATE\tUSER\tSOURCE\tUPDATED")
		}
		left, cursor := *limit, ""
		for {
			n := page
			if *limit > 0 {
				n = min(page, left)
			}
			q := url.Values{"limit": {fmt.Sprint(n)}}
			if cursor != "" {
				q.Set("cursor", cursor)
			}
			raw, err := admin.do(cmd.Context(), http.MethodGet, "?"+q.Encode(), nil)
			if err != nil {
				return err
			}
			var list struct {
				Clients []json.RawMessage `json:"clients"`
				Cursor  string            `json:"cursor"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return fmt.Errorf("the server's answer can't be read: %w", err)
			}
			for _, raw := range list.Clients {
				if c.json {
					fmt.Fprintln(out, string(raw))
					continue
				}
				var one registeredClient
				if err := json.Unmarshal(raw, &one); err != nil {
					return fmt.Errorf("the server's answer can't be read: %w", err)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", one.ID, one.state(), one.User, one.Source, cmp.Or(one.Updated, "-"))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			left -= len(list.Clients)
			if cursor = list.Cursor; cursor == "" || *limit > 0 && left <= 0 {
				return nil
			}
		}
	}
	return cmd
}

func clientsShow(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Show a client: never its secret", Args: oneID}
	c := newClientsFlags(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.call(cmd, http.MethodGet, args[0], nil)
	}
	return cmd
}

// call asks for something of one client, and shows what it is then.
func (c *clientsFlags) call(cmd *cobra.Command, method, id string, body any) error {
	admin, err := c.admin(cmd)
	if err != nil {
		return err
	}
	path := ""
	if id != "" {
		path = "/" + url.PathEscape(id)
	}
	raw, err := admin.do(cmd.Context(), method, path, body)
	if err != nil {
		return err
	}
	return c.show(cmd, raw)
}

// clientFields are the flags that say what a client is.
type clientFields struct {
	cmd        *cobra.Command
	user       string
	anyUser    bool
	channels   []string
	tokenTTL   time.Duration
	refreshTTL time.Duration
	metadata   string
	stdin      bool
}

func newClientFields(cmd *cobra.Command) *clientFields {
	f := &clientFields{cmd: cmd}
	flags := cmd.Flags()
	flags.StringVar(&f.user, "user", "", "the `user` of its tokens (default its id)")
	flags.BoolVar(&f.anyUser, "any-user", false, "it may ask for tokens of any user")
	flags.StringSliceVar(&f.channels, "channels", nil, "`topics` that its sessions are subscribed to, with commas between")
	flags.DurationVar(&f.tokenTTL, "token-ttl", 0, "how long its tokens are good for, such as 1h; 0: auth.token_ttl")
	flags.DurationVar(&f.refreshTTL, "refresh-ttl", 0, "the same of its refresh tokens; 0: auth.refresh_ttl; -1s: none")
	flags.StringVar(&f.metadata, "metadata", "", "a JSON `object` of your own")
	flags.BoolVar(&f.stdin, "secret-stdin", false, "read its secret from standard input, instead of having one made")
	return f
}

// body is what the flags that were given say.
func (f *clientFields) body() (map[string]any, error) {
	body := map[string]any{}
	set := func(flag, key string, value any) {
		if f.cmd.Flags().Changed(flag) {
			body[key] = value
		}
	}
	for _, d := range []struct {
		flag string
		d    time.Duration
	}{{"token-ttl", f.tokenTTL}, {"refresh-ttl", f.refreshTTL}} {
		if d.d%time.Second != 0 {
			return nil, usagef("--%s: %s must be whole seconds", d.flag, d.d)
		}
	}
	set("user", "user", f.user)
	set("any-user", "any_user", f.anyUser)
	set("channels", "channels", append([]string{}, f.channels...))
	set("token-ttl", "token_ttl", int64(f.tokenTTL/time.Second))
	set("refresh-ttl", "refresh_ttl", int64(f.refreshTTL/time.Second))
	if f.cmd.Flags().Changed("metadata") {
		if !json.Valid([]byte(f.metadata)) {
			return nil, usagef(`--metadata: must be a JSON object, such as '{"site":"north"}'`)
		}
		body["metadata"] = json.RawMessage(f.metadata)
	}
	if f.stdin {
		const most = 1 << 10
		b, err := io.ReadAll(io.LimitReader(f.cmd.InOrStdin(), most+2))
		if err != nil {
			return nil, fmt.Errorf("--secret-stdin: %w", err)
		}
		body["secret"] = strings.TrimRight(string(b), "\r\n")
	}
	return body, nil
}

func clientsCreate(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create [ID]",
		Short: "Register a client, and print its secret",
		Long:  "Registers a client. An id that is not given is made, and so is a secret: it is printed\nthis once, and kept as a hash.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("unexpected argument %q", args[1])
			}
			return nil
		},
	}
	c, fields := newClientsFlags(cmd, environ), newClientFields(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := fields.body()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			body["id"] = args[0]
		}
		return c.call(cmd, http.MethodPost, "", body)
	}
	return cmd
}

func clientsUpdate(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "update ID", Short: "Change what is given of a client", Args: oneID}
	c, fields := newClientsFlags(cmd, environ), newClientFields(cmd)
	rotate := cmd.Flags().Bool("rotate-secret", false, "make a new secret and print it; the old one is refused from then on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := fields.body()
		if err != nil {
			return err
		}
		if *rotate {
			body["rotate_secret"] = true
		}
		if len(body) == 0 {
			return usagef("nothing to change was given, such as --user")
		}
		return c.call(cmd, http.MethodPatch, args[0], body)
	}
	return cmd
}

func clientsSwitch(environ []string, name, short string, disabled bool) *cobra.Command {
	cmd := &cobra.Command{Use: name + " ID", Short: short, Args: oneID}
	c := newClientsFlags(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.call(cmd, http.MethodPatch, args[0], map[string]any{"disabled": disabled})
	}
	return cmd
}

func clientsDelete(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete ID", Short: "Forget a client, end its live sessions and revoke its tokens, on all nodes", Args: oneID,
	}
	c := newClientsFlags(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		admin, err := c.admin(cmd)
		if err != nil {
			return err
		}
		if _, err = admin.do(cmd.Context(), http.MethodDelete, "/"+url.PathEscape(args[0]), nil); err != nil || c.json {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "deleted "+args[0])
		return err
	}
	return cmd
}
