// The job of the side-by-side bench, written with controller-runtime, and the first sync of a Pod cache.
package main

import (
	"flag"
	"fmt"
	"os"

	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

func main() {
	kubeconfig := flag.String("server", "", "kubeconfig of the API server")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	if err := run(flag.Arg(0), *kubeconfig); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1 // client limits off, as ours are
	switch command {
	case "operator":
		return operate(ctrl.SetupSignalHandler(), config)
	case "first-sync":
		return firstSync(ctrl.SetupSignalHandler(), config)
	}
	return fmt.Errorf("unknown command %q: operator or first-sync", command)
}
